"""A codec of the guest protocol for these tests alone, so that one misreading cannot hide in both ends."""

from __future__ import annotations

import select
import socket
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

ATTACH, HELLO, QUIESCE, QUIESCED, UNQUIESCE, RELIEVE, NOTICE = range(1, 8)
OPEN, REPLY, DATA, EOF, WINDOW, EVENT, END, CLOSE, CONTROL = range(0x10, 0x19)
EXEC, SIGNAL = 0x01, 0x02
STAT, LIST, MKDIR, MOVE, REMOVE, READ, WRITE, WATCH, SYNC_WATCH = range(0x10, 0x19)
DIAL, CONNECT, RESOLVE, STATS = 0x20, 0x21, 0x22, 0x30
FULL_WINDOW = 262144


def field(tag: int, value: bytes | str) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<BI", tag, len(data)) + data


def u8(value: int) -> bytes:
    return struct.pack("<B", value)


def u16(value: int) -> bytes:
    return struct.pack("<H", value)


def u32(value: int) -> bytes:
    return struct.pack("<I", value)


def u64(value: int) -> bytes:
    return struct.pack("<Q", value)


def fields(data: bytes) -> list[tuple[int, bytes]]:
    out, at = [], 0
    while at < len(data):
        tag, size = struct.unpack_from("<BI", data, at)
        at += 5
        assert at + size <= len(data), "a field runs over its list"
        out.append((tag, data[at : at + size]))
        at += size
    return out


def number(value: bytes) -> int:
    return int.from_bytes(value, "little")


@dataclass(frozen=True)
class Frame:
    type: int
    flags: int
    stream: int
    payload: bytes

    @property
    def errno(self) -> int:
        """Of a REPLY or END."""
        return number(self.payload[:4])

    @property
    def values(self) -> dict[int, bytes]:
        """The fields of a REPLY, END, EVENT (behind its kind), NOTICE or HELLO; the last of each tag."""
        skip = {REPLY: 4, END: 4, EVENT: 1, OPEN: 1}.get(self.type, 0)
        return dict(fields(self.payload[skip:]))


@dataclass(frozen=True)
class Entry:
    name: str
    type: int
    path: str
    size: int
    mode: int
    owner: str
    group: str
    target: str | None
    metadata: dict[str, bytes]


def entry(data: bytes) -> Entry:
    """Of the nested fields inside tag 30."""
    pairs = fields(data)
    last = dict(pairs)
    metadata = dict(value.split(b"\0", 1) for tag, value in pairs if tag == 10)
    return Entry(
        name=last[1].decode(),
        type=number(last[2]),
        path=last[3].decode(),
        size=number(last[4]),
        mode=number(last[5]),
        owner=last[6].decode(),
        group=last[7].decode(),
        target=last[9].decode() if 9 in last else None,
        metadata={name.decode(): value for name, value in metadata.items()},
    )


class Wire:
    """The host's end of a link, blocking, one frame after the other."""

    def __init__(self, link: socket.socket) -> None:
        self.link = link
        self.held: list[Frame] = []
        self.next_id = 1

    def send(self, type: int, stream: int, payload: bytes = b"", flags: int = 0) -> None:
        self.link.send(struct.pack("<BBHI", type, flags, 0, stream) + payload)

    def receive(self, timeout: float = 20) -> Frame:
        ready, _, _ = select.select([self.link], [], [], timeout)
        assert ready, "the agent is silent"
        packet = self.link.recv(1 << 20)
        assert packet, "the agent is gone"
        assert 8 <= len(packet) <= 8 + 65536
        type, flags, reserved, stream = struct.unpack_from("<BBHI", packet)
        assert reserved == 0
        return Frame(type, flags, stream, packet[8:])

    def expect(self, wanted: Callable[[Frame], bool], timeout: float = 20) -> Frame:
        """The first frame, held back or new, that is wanted; others are held back."""
        for index, frame in enumerate(self.held):
            if wanted(frame):
                return self.held.pop(index)
        deadline = time.monotonic() + timeout
        while True:
            frame = self.receive(max(0.0, deadline - time.monotonic()))
            if wanted(frame):
                return frame
            self.held.append(frame)

    def on(self, stream: int, *types: int, timeout: float = 20) -> Frame:
        return self.expect(lambda frame: frame.stream == stream and frame.type in types, timeout)

    def quiet(self, seconds: float) -> bool:
        """True when nothing arrives for that long."""
        return not select.select([self.link], [], [], seconds)[0]

    def attach(self, epoch: int = 1, *more: bytes) -> Frame:
        self.send(ATTACH, 0, field(1, u16(1)) + field(2, u64(epoch)) + b"".join(more))
        hello = self.expect(lambda frame: frame.type == HELLO)
        while hello.flags & 1:
            rest = self.expect(lambda frame: frame.type == HELLO)
            hello = Frame(HELLO, rest.flags, 0, hello.payload + rest.payload)
        self.held = [frame for frame in self.held if frame.stream == 0 and frame.type != HELLO]
        return hello

    def open(self, op: int, *parts: bytes) -> int:
        stream, self.next_id = self.next_id, self.next_id + 2
        body = u8(op) + b"".join(parts)
        while len(body) > 65536:
            self.send(OPEN, stream, body[:65536], flags=1)
            body = body[65536:]
        self.send(OPEN, stream, body)
        return stream

    def ask(self, op: int, *parts: bytes) -> Frame:
        return self.on(self.open(op, *parts), REPLY)

    def path(self, op: int, path: str, *more: bytes, user: str = "root") -> Frame:
        return self.ask(op, field(1, user), field(2, path), *more)

    def exec(self, *argv: str, user: str = "root", more: bytes = b"") -> tuple[int, int]:
        """Start; the stream and the pid."""
        stream = self.open(EXEC, field(1, user), *(field(3, arg) for arg in argv), more)
        reply = self.on(stream, REPLY)
        assert reply.errno == 0, reply
        return stream, number(reply.values[20])

    def data(self, stream: int, *, grant: bool = True) -> Iterator[Frame]:
        """DATA frames of a stream up to its END, which comes last."""
        while True:
            frame = self.on(stream, DATA, END, EOF)
            if frame.type == DATA and grant:
                self.send(WINDOW, stream, u32(len(frame.payload)))
            yield frame
            if frame.type == END:
                return

    def output(self, stream: int) -> tuple[dict[int, bytes], Frame]:
        """Everything by channel, and the END."""
        channels: dict[int, bytearray] = {}
        for frame in self.data(stream):
            if frame.type == DATA:
                channels.setdefault(frame.flags, bytearray()).extend(frame.payload)
        return {channel: bytes(data) for channel, data in channels.items()}, frame

    def run(self, *argv: str, user: str = "root", more: bytes = b"") -> tuple[dict[int, bytes], int]:
        """Run to its end: output by channel and the wait status."""
        stream, _ = self.exec(*argv, user=user, more=more)
        channels, end = self.output(stream)
        return channels, number(end.values[21])

    def read(self, path: str, *more: bytes) -> bytes:
        stream = self.open(READ, field(1, "root"), field(2, path), *more)
        reply = self.on(stream, REPLY)
        assert reply.errno == 0, reply
        channels, end = self.output(stream)
        assert end.errno == 0
        return channels.get(0, b"")

    def write(self, path: str, content: bytes, *more: bytes, user: str = "root") -> Frame:
        """Write a whole file; the END or the failing REPLY."""
        stream = self.open(WRITE, field(1, user), field(2, path), *more)
        reply = self.on(stream, REPLY)
        if reply.errno:
            return reply
        window, at = FULL_WINDOW, 0
        while at < len(content):
            piece = content[at : at + min(65536, window)]
            if piece:
                self.send(DATA, stream, piece)
                window -= len(piece)
                at += len(piece)
            while window == 0 or not self.quiet(0):
                frame = self.receive()
                if frame.stream != stream:
                    self.held.append(frame)
                elif frame.type == END:
                    return frame
                else:
                    window += number(frame.payload)
        self.send(EOF, stream)
        return self.on(stream, END)
