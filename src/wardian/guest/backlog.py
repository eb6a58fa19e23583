"""Bytes that wait for their consumer, in order, with their channel.

Compact however finely they were chopped.
"""

from __future__ import annotations

from collections import deque

SMALL = 4096
"""Pieces shorter than this are kept together, so that 256 Ki pieces of one byte do not cost 256 Ki objects.
"""
PIECE_MAX = 65536


class Backlog:
    """A queue of (channel, bytes). The flow-control window bounds it, not this class.

    Large pieces are kept as they are. Small ones of one channel are joined; small ones of changing channels
    lie in one run of records (channel, length, bytes), so the overhead of a byte is five bytes, not a
    hundred.
    """

    __slots__ = ("_items", "size")

    def __init__(self) -> None:
        self._items: deque[tuple[int, bytes] | _Run] = deque()
        self.size = 0

    def __bool__(self) -> bool:
        return self.size > 0

    def push(self, channel: int, data: bytes) -> None:
        if not data:
            return
        self.size += len(data)
        items = self._items
        if len(data) >= SMALL:
            items.append((channel, data))
            return
        last = items[-1] if items else None
        if last is None:
            items.append((channel, data))  # the usual case: somebody is waiting for it
        elif isinstance(last, _Run):
            last.push(channel, data)
        else:
            run = _Run()
            if len(last[1]) < SMALL:
                items.pop()
                run.push(*last)
            run.push(channel, data)
            items.append(run)

    def pop(self) -> tuple[int, bytes]:
        """The oldest piece, at most 64 KiB. There must be one."""
        item = self._items[0]
        if isinstance(item, _Run):
            piece = item.pop()
            if not item:
                self._items.popleft()
        else:
            piece = item
            self._items.popleft()
        self.size -= len(piece[1])
        return piece

    def push_back(self, channel: int, data: bytes) -> None:
        """Undo part of a pop: ``data`` becomes the oldest piece again."""
        if data:
            self.size += len(data)
            self._items.appendleft((channel, data))

    def clear(self) -> None:
        self._items.clear()
        self.size = 0


class _Run:
    """Records one after the other: channel u8, length u32, bytes."""

    __slots__ = ("_bytes", "_last")

    _HEAD = 5

    def __init__(self) -> None:
        self._bytes = bytearray()
        self._last = -1  # where the last record begins

    def __bool__(self) -> bool:
        return bool(self._bytes)

    def push(self, channel: int, data: bytes) -> None:
        buffer = self._bytes
        if self._last >= 0 and buffer[self._last] == channel:
            length = int.from_bytes(buffer[self._last + 1 : self._last + self._HEAD], "little") + len(data)
            if length <= PIECE_MAX:
                buffer[self._last + 1 : self._last + self._HEAD] = length.to_bytes(4, "little")
                buffer += data
                return
        self._last = len(buffer)
        buffer.append(channel)
        buffer += len(data).to_bytes(4, "little")
        buffer += data

    def pop(self) -> tuple[int, bytes]:
        buffer = self._bytes
        end = self._HEAD + int.from_bytes(buffer[1 : self._HEAD], "little")
        piece = buffer[0], bytes(buffer[self._HEAD : end])
        del buffer[:end]
        self._last = self._last - end if self._last >= end else -1
        return piece
