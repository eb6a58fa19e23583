"""Keeps what the bridge put into a request out of the answer, also where an upstream sends it back."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable

NEEDLE_MIN = 6
"""Shorter values are too common to be looked for."""
TOKENS = ("access_token", "refresh_token", "id_token")
SEALED = "sealed-by-wardian"
JSON_MAX = 64 * 1024

_TOKEN_ANSWER = re.compile(rb'"(access_token|refresh_token|id_token)"')


class Scrubber:
    """Replaces values by asterisks, as many as they have bytes, in a stream of chunks.

    What might be the beginning of a value is held back until the next chunk; nothing else is.
    """

    def __init__(self, values: Iterable[bytes]) -> None:
        self._values = sorted({each for each in values if len(each) >= NEEDLE_MIN}, key=len, reverse=True)
        self._kept = b""
        self.found = 0

    def feed(self, data: bytes) -> bytes:
        if not self._values:
            return data
        data = self._replace(self._kept + data)
        keep = max(_overlap(data, value) for value in self._values)
        self._kept = data[len(data) - keep :]
        return data[: len(data) - keep]

    def rest(self) -> bytes:
        kept, self._kept = self._kept, b""
        return kept

    def text(self, text: str) -> str:
        """A short text, whole."""
        return self._replace(text.encode("utf-8", "surrogateescape")).decode("utf-8", "surrogateescape")

    def _replace(self, data: bytes) -> bytes:
        for value in self._values:
            if (times := data.count(value)) > 0:
                self.found += times
                data = data.replace(value, b"*" * len(value))
        return data


def _overlap(data: bytes, value: bytes) -> int:
    """How many bytes at the end of ``data`` begin ``value``."""
    tail = data[-(len(value) - 1) :]
    at = tail.find(value[:1])
    while at >= 0:
        if value.startswith(tail[at:]):
            return len(tail) - at
        at = tail.find(value[:1], at + 1)
    return 0


def seal_tokens(body: bytes) -> bytes | None:
    """A JSON answer with the fresh tokens in it replaced; None when there are none to replace."""
    if not _TOKEN_ANSWER.search(body):
        return None
    try:
        told = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return json.dumps(_sealed(told)).encode()


def _sealed(value: object) -> object:
    if isinstance(value, dict):
        return {
            key: SEALED if key in TOKENS and isinstance(each, str) else _sealed(each)
            for key, each in value.items()
        }
    return [_sealed(each) for each in value] if isinstance(value, list) else value
