"""What a scan looks for: values that must be nowhere, and the forms in which one may lie about."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from hmac import digest as hmac
from urllib.parse import quote, quote_plus

VALUE_MIN = 8
"""Bytes. What is shorter is found everywhere, and its finding says nothing."""
VALUE_MAX = 512
"""Bytes of a value that are looked for: no two long ones begin alike for so long."""
CORE_MIN = 8

FORMS = ("raw", "utf-16", "hex", "base64", "base64url", "url", "json")


@dataclass(frozen=True, slots=True)
class Needle:
    """One value. ``id`` says whose it is (``secret:sec_1:2``, ``canary:3``) and is told; the value is not."""

    id: str
    value: bytes = field(repr=False)

    @property
    def searchable(self) -> bool:
        return len(self.value) >= VALUE_MIN

    def fingerprint(self, key: bytes) -> str:
        """Names the value to whoever has ``key``, and tells nobody else anything, however short it is."""
        return hmac(key, self.value, sha256).hex()[:32]


@dataclass(frozen=True, slots=True)
class Form:
    """The bytes of one form of a needle. Line ends may be anywhere in a ``wrapped`` one."""

    needle: int  # which one, in the order they were given
    name: str
    data: bytes = field(repr=False)
    wrapped: bool = False


def forms_of(needles: Sequence[Needle]) -> Sequence[Form]:
    """Every form of every needle that is long enough, each once."""
    found: dict[tuple[int, bytes], Form] = {}
    for number, needle in enumerate(needles):
        if needle.searchable:
            for name, data in _spellings(needle.value[:VALUE_MAX]):
                form = Form(number, name, data, wrapped=name.startswith("base64"))
                found.setdefault((number, data), form)
    return list(found.values())


def _spellings(value: bytes) -> Iterator[tuple[str, bytes]]:
    yield "raw", value
    yield "hex", value.hex().encode()
    yield "hex", value.hex().upper().encode()
    for before in range(3):
        yield from _base64(value, before)
    quoted = quote(value, safe="")
    for text in (quoted, quote_plus(value), quote(value)):
        yield "url", text.encode()
        yield "url", _lower_escapes(text).encode()
    try:
        text = value.decode()
    except UnicodeDecodeError:
        return
    yield "utf-16", text.encode("utf-16-le")
    for escaped in (json.dumps(text), json.dumps(text, ensure_ascii=False)):
        yield "json", escaped[1:-1].encode()
        yield "json", escaped[1:-1].replace("/", "\\/").encode()


def _base64(value: bytes, before: int) -> Iterator[tuple[str, bytes]]:
    """What is the same whatever stands around it, when ``before`` (0 to 2) bytes of a group of three do."""
    encoded = base64.b64encode(bytes(before) + value)
    begin = (before * 8 + 5) // 6  # characters that also hold bits of what stands before
    end = (before + len(value)) * 8 // 6  # and of what stands after
    core = encoded[begin:end]
    if len(core) >= CORE_MIN:
        yield "base64", core
        yield "base64url", core.translate(bytes.maketrans(b"+/", b"-_"))


def _lower_escapes(text: str) -> str:
    head, *escaped = text.split("%")
    return "%".join([head, *(part[:2].lower() + part[2:] for part in escaped)])
