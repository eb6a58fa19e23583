"""Reads from a model's answer, whole or streamed, what it used: OpenAI's and Anthropic's forms.

Bounded: what is too long to be such an answer, or such a line, counts as none.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

BODY_MAX = 4 << 20
LINE_MAX = 1 << 20
_IN = ("input_tokens", "prompt_tokens")
_MORE_IN = ("cache_creation_input_tokens", "cache_read_input_tokens")
_OUT = ("output_tokens", "completion_tokens")


@dataclass(slots=True)
class Usage:
    model: str = ""
    tokens_in: int = 0
    tokens_out: int = 0


class UsageReader:
    """Fed with the bytes of an answer's body."""

    def __init__(self, content_type: str) -> None:
        kind = content_type.partition(";")[0].strip().lower()
        self._streamed = kind == "text/event-stream"
        self._reads = self._streamed or kind == "application/json"
        self._pending = bytearray()
        self.usage = Usage()

    def feed(self, data: bytes) -> None:
        if not self._reads:
            return
        self._pending += data
        if self._streamed:
            *lines, rest = self._pending.split(b"\n")
            for line in lines:
                self._line(bytes(line))
            self._pending = rest
        if len(self._pending) > (LINE_MAX if self._streamed else BODY_MAX):
            self._reads = False
            self._pending.clear()

    def end(self) -> Usage:
        if self._reads and self._pending:
            self._line(bytes(self._pending)) if self._streamed else self._take(bytes(self._pending))
        return self.usage

    def _line(self, line: bytes) -> None:
        if line.startswith(b"data:"):
            self._take(line[5:])

    def _take(self, text: bytes) -> None:
        if b'usage"' not in text and b'"model"' not in text:
            return
        try:
            told = json.loads(text)
        except (ValueError, RecursionError):
            return
        if isinstance(told, dict):
            for part in (told, told.get("message"), told.get("response")):
                if isinstance(part, dict):
                    self._note(part)

    def _note(self, part: dict[str, Any]) -> None:
        """Counts only grow: the events of a stream repeat and complete one another."""
        usage = self.usage
        if isinstance(model := part.get("model"), str):
            usage.model = model[:128]
        if isinstance(told := part.get("usage"), dict):
            inward = max(_number(told, name) for name in _IN) + sum(_number(told, name) for name in _MORE_IN)
            usage.tokens_in = max(usage.tokens_in, inward)
            usage.tokens_out = max(usage.tokens_out, *(_number(told, name) for name in _OUT))


def _number(told: dict[str, Any], name: str) -> int:
    value = told.get(name)
    return value if isinstance(value, int) and 0 <= value < 1 << 40 else 0
