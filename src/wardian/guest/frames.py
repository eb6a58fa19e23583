"""The frames of ``guest/PROTOCOL.md`` as bytes, without I/O.

Everything read here is hostile: :class:`Violation`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

VERSION: Final = 1
HEADER: Final = struct.Struct("<BBHI")  # type, flags, reserved, stream
HEADER_SIZE: Final = HEADER.size
PAYLOAD_MAX: Final = 65536
FRAME_MAX: Final = HEADER_SIZE + PAYLOAD_MAX
WINDOW: Final = 262_144
"""Bytes of DATA either side of a stream may send before the other grants more."""
REQUEST_MAX: Final = 2 * 1024 * 1024
"""Longest OPEN, all its frames together."""

# Frame types
ATTACH, HELLO, QUIESCE, QUIESCED, UNQUIESCE, RELIEVE, NOTICE = range(0x01, 0x08)
OPEN, REPLY, DATA, EOF, GRANT, EVENT, END, CLOSE, CONTROL = range(0x10, 0x19)

# Flags of a frame: MORE on OPEN and HELLO, FIN on REPLY. On DATA and EOF the flags are a channel.
MORE: Final = 0x01
FIN: Final = 0x01
CHANNEL_PLAIN, CHANNEL_STDOUT, CHANNEL_STDERR, CHANNEL_PTY = range(4)

# Ops
OP_EXEC, OP_SIGNAL = 0x01, 0x02
OP_STAT, OP_LIST, OP_MKDIR, OP_MOVE, OP_REMOVE, OP_READ, OP_WRITE, OP_WATCH, OP_SYNC_WATCH = range(0x10, 0x19)
OP_DIAL, OP_CONNECT, OP_RESOLVE = 0x20, 0x21, 0x22
OP_STATS = 0x30
OP_PACK, OP_UNPACK = 0x40, 0x41

EVENT_EXITED, EVENT_CHANGED = 1, 2
CONTROL_SIGNAL, CONTROL_RESIZE = 1, 2

_FIELD = struct.Struct("<BI")
_FIELD_SIZE = _FIELD.size
_U32 = struct.Struct("<I")


class Violation(Exception):
    """The guest sent something the protocol does not allow."""


def field(tag: int, value: bytes) -> bytes:
    return _FIELD.pack(tag, len(value)) + value


def number(tag: int, value: int, size: int) -> bytes:
    """An unsigned integer field of ``size`` bytes."""
    return _FIELD.pack(tag, size) + value.to_bytes(size, "little")


def fields(payload: bytes) -> Iterator[tuple[int, bytes]]:
    """Cut a payload into (tag, value) pairs."""
    at, end = 0, len(payload)
    while at < end:
        if end - at < _FIELD_SIZE:
            raise Violation("a field is cut short")
        tag, length = _FIELD.unpack_from(payload, at)
        at += _FIELD_SIZE
        if length > end - at:
            raise Violation("a field is longer than its frame")
        yield tag, payload[at : at + length]
        at += length


class Fields:
    """The fields of one message by tag. A tag that is asked for as one value must not be there twice."""

    __slots__ = ("_values",)

    def __init__(self, payload: bytes) -> None:
        values: dict[int, list[bytes]] = {}
        for tag, value in fields(payload):
            values.setdefault(tag, []).append(value)
        self._values = values

    def many(self, tag: int) -> list[bytes]:
        return self._values.get(tag, [])

    def optional(self, tag: int) -> bytes | None:
        values = self._values.get(tag)
        if values is None:
            return None
        if len(values) > 1:
            raise Violation(f"field {tag} is there {len(values)} times")
        return values[0]

    def raw(self, tag: int) -> bytes:
        value = self.optional(tag)
        if value is None:
            raise Violation(f"field {tag} is missing")
        return value

    def integer(self, tag: int, size: int, *, signed: bool = False) -> int:
        value = self.raw(tag)
        if len(value) != size:
            raise Violation(f"field {tag} has {len(value)} bytes, not {size}")
        return int.from_bytes(value, "little", signed=signed)

    def text(self, tag: int, *, limit: int = 4096) -> str:
        """Text to be shown; bytes that are not UTF-8 become replacement characters."""
        return shown(self.raw(tag), limit)


def shown(value: bytes, limit: int = 4096) -> str:
    """Bytes from the guest as text for people, at most ``limit`` bytes of it."""
    if len(value) > limit:
        raise Violation(f"a text of {len(value)} bytes, {limit} are allowed")
    return value.decode("utf-8", "replace")


def u32(payload: bytes | memoryview) -> int:
    """The number that a payload begins with (an errno, a grant)."""
    if len(payload) < 4:
        raise Violation("a number is cut short")
    (value,) = _U32.unpack_from(payload)
    return int(value)


class FieldReader:
    """Cuts a stream of fields that may be split anywhere. Feed it; it yields what is complete.

    A field longer than ``limit`` is a violation, so this never holds more than that plus one piece.
    """

    __slots__ = ("_buffer", "_limit")

    def __init__(self, limit: int) -> None:
        self._buffer = b""
        self._limit = limit

    def feed(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        buffer = self._buffer + data if self._buffer else data
        at, end = 0, len(buffer)
        while end - at >= _FIELD_SIZE:
            tag, length = _FIELD.unpack_from(buffer, at)
            if length > self._limit:
                raise Violation(f"a field of {length} bytes, {self._limit} are allowed")
            start = at + _FIELD_SIZE
            if end - start < length:
                break
            at = start + length
            yield tag, buffer[start:at]
        self._buffer = buffer[at:]

    def finish(self) -> None:
        """The stream is over: nothing may be left."""
        if self._buffer:
            raise Violation("a field is cut short")
