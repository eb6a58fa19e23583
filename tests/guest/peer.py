"""Guests for tests of the host's side: one that a test scripts, and the real agent, run natively."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.guest import wire
from tests.guest.wire import Frame
from tests.native import make

from wardian.guest.guest import Exit, Guest, Output, Process, ProcessConfig

REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass
class Peer:
    """The guest's end of a link, without an agent: a test says what it sends."""

    link: socket.socket
    guest: Guest
    faults: list[Exception] = field(default_factory=list)
    faulted: asyncio.Event = field(default_factory=asyncio.Event)
    held: list[Frame] = field(default_factory=list)

    async def receive(self) -> Frame:
        async with asyncio.timeout(10):
            packet = await asyncio.get_running_loop().sock_recv(self.link, 1 << 17)
        assert packet, "the host hung up"
        kind, flags, reserved, stream = struct.unpack_from("<BBHI", packet)
        assert reserved == 0
        return Frame(kind, flags, stream, packet[8:])

    async def expect(self, wanted: Callable[[Frame], bool]) -> Frame:
        """The next frame that is wanted; others are held for later."""
        for index, frame in enumerate(self.held):
            if wanted(frame):
                return self.held.pop(index)
        while not wanted(frame := await self.receive()):
            self.held.append(frame)
        return frame

    async def on(self, kind: int) -> Frame:
        return await self.expect(lambda frame: frame.type == kind)

    async def send(self, kind: int, stream: int, payload: bytes = b"", flags: int = 0) -> None:
        await self.raw(struct.pack("<BBHI", kind, flags, 0, stream) + payload)

    async def raw(self, packet: bytes) -> None:
        try:
            await asyncio.get_running_loop().sock_sendall(self.link, packet)
        except (BrokenPipeError, ConnectionResetError):
            assert self.guest_is_done, "the host hung up without a reason"

    @property
    def guest_is_done(self) -> bool:
        return self.guest._link.broken

    def hello(self, epoch: int, *more: bytes) -> bytes:
        return (
            wire.field(1, wire.u16(1))
            + wire.field(2, wire.u64(epoch))
            + wire.field(3, "test")
            + b"".join(more)
        )

    async def attached(self, *more: bytes) -> None:
        """Go through ATTACH and HELLO."""
        attaching = asyncio.create_task(self.guest.attach(7))
        token = await self.token()
        await self.send(wire.HELLO, 0, self.hello(token, *more))
        await attaching

    async def token(self) -> int:
        attach = await self.on(wire.ATTACH)
        return wire.number(dict(wire.fields(attach.payload))[2])

    async def started(self, pid: int = 100, *, stdin: bool = False, pty: bool = False) -> tuple[Process, int]:
        """Go through an EXEC; the process and its stream."""
        starting = asyncio.create_task(
            self.guest.exec(ProcessConfig("x", (), {}, None), stdin=stdin, pty=(80, 24) if pty else None)
        )
        stream = (await self.on(wire.OPEN)).stream
        await self.send(wire.REPLY, stream, wire.u32(0) + wire.field(20, wire.u32(pid)))
        return await starting, stream

    async def ended(self, stream: int, status: int = 0) -> None:
        await self.send(wire.EVENT, stream, b"\1" + wire.field(21, wire.u32(status)))
        await self.send(wire.END, stream, wire.u32(0) + wire.field(21, wire.u32(status)))

    async def settled(self) -> None:
        """Return when the host has handled everything sent so far (or is done with us)."""
        if self.guest_is_done:
            return
        asking = asyncio.create_task(self.guest.stats())
        opened = asyncio.create_task(
            self.expect(lambda frame: frame.type == wire.OPEN and frame.payload[:1] == wire.u8(wire.STATS))
        )
        fault = asyncio.create_task(self.faulted.wait())
        await asyncio.wait([opened, fault], return_when=asyncio.FIRST_COMPLETED)
        if opened.done() and not opened.exception():
            await self.send(wire.REPLY, opened.result().stream, wire.u32(0) + STATS, flags=1)
        for task in (opened, fault):
            task.cancel()
        await asyncio.gather(asking, opened, fault, return_exceptions=True)


STATS = b"".join(wire.field(tag, wire.u32(1) if tag == 5 else wire.u64(1)) for tag in range(1, 8))


@asynccontextmanager
async def scripted() -> AsyncIterator[Peer]:
    """A guest and its peer; not attached yet."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    theirs.setblocking(False)
    guest = Guest(ours)
    peer = Peer(theirs, guest)

    def fault(error: Exception) -> None:
        peer.faults.append(error)
        peer.faulted.set()

    guest.on_fault = fault
    try:
        yield peer
    finally:
        await guest.close()
        theirs.close()


def build_agent() -> Path:
    """The agent, as its sources are now."""
    make(REPOSITORY / "guest")
    return REPOSITORY / "guest/build/wardian-guest"


@dataclass
class Native:
    """The real agent on this machine, unconfined. ``home`` belongs to its user: whoever runs the test."""

    guest: Guest
    home: Path
    process: subprocess.Popen[bytes]
    keep: socket.socket
    faults: list[Exception]

    async def sh(self, script: str, *, stdin: bool = False) -> tuple[bytes, Exit]:
        """What a shell script writes on both channels, and how it ends."""
        process = await self.guest.exec(ProcessConfig("/bin/sh", ("-c", script), {}, None), stdin=stdin)
        return await output(process)

    async def successor(self, epoch: int = 2) -> Guest:
        """Another host process takes the link over; the first one is gone without a word."""
        heir = Guest(self.keep.dup())
        heir.on_fault = self.faults.append
        await heir.attach(epoch)
        return heir


async def output(process: Process) -> tuple[bytes, Exit]:
    """All output from now on, and the exit."""
    parts = []
    async for event in process.subscribe():
        if isinstance(event, Output):
            parts.append(event.data)
        else:
            exit = event
    return b"".join(parts), exit


def start_agent(
    directory: Path, link: socket.socket, *arguments: str, pass_fds: tuple[int, ...] = ()
) -> tuple[subprocess.Popen[bytes], Path]:
    """The agent in a world of its own below ``directory``, and its user's home."""
    home = directory / "home"
    for name in (home, directory / "root/etc"):
        name.mkdir(parents=True)
    user, group = os.getuid(), os.getgid()
    (directory / "root/etc/passwd").write_text(f"user:x:{user}:{group}::{home}:/bin/sh\n")
    (directory / "root/etc/group").write_text(f"user:x:{group}:\n")
    process = subprocess.Popen(
        [build_agent(), "--native", str(directory / "root"), "--link", str(link.fileno()), *arguments],
        pass_fds=(link.fileno(), *pass_fds),
        stderr=subprocess.DEVNULL,
    )
    return process, home


@asynccontextmanager
async def native(directory: Path, *arguments: str, pass_fds: tuple[int, ...] = ()) -> AsyncIterator[Native]:
    """The agent, attached. No fault may come up, and it goes when the link does."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    process, home = start_agent(directory, theirs, *arguments, pass_fds=pass_fds)
    theirs.close()
    faults: list[Exception] = []
    keep, guest = ours.dup(), Guest(ours)
    guest.on_fault = faults.append
    try:
        await guest.attach(1)
        yield Native(guest, home, process, keep, faults)
        assert not faults
    finally:
        await guest.close()
        keep.close()
        try:
            await asyncio.to_thread(process.wait, 10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise
