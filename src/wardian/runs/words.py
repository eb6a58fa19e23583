"""What processes of runs say, of which the end is kept."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator


class Tail:
    """The last ``most`` bytes of a stream."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._pieces: deque[bytes] = deque()
        self._size = 0

    def add(self, data: bytes) -> None:
        self._pieces.append(data)
        self._size += len(data)
        while self._size - len(self._pieces[0]) > self._most:
            self._size -= len(self._pieces.popleft())

    def text(self) -> str:
        return b"".join(self._pieces)[-self._most :].decode(errors="replace")


async def once(data: bytes) -> AsyncIterator[bytes]:
    """As a stream."""
    yield data


__all__ = ["Tail", "once"]
