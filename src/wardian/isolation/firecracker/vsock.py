"""The link of a machine: packets over a vsock connection, which Firecracker forwards from a unix socket.

We connect to ``v.sock``, say ``CONNECT <port>``, and are answered ``OK <our port>`` when the guest listens
there; otherwise the connection is closed. On the stream each packet is a mark, its size in three bytes
(little-endian), and its bytes; zeros between packets mean nothing; another mark and eight bytes are the
host's clock: what the guest's agent speaks over any byte stream.

A snapshot cuts every connection of the guest's: after a restore it listens again, and is connected to anew.
"""

from __future__ import annotations

import asyncio
import re
import socket
import time
from contextlib import suppress

from wardian.isolation.firecracker.jail import Jail, Names
from wardian.model.errors import Kind, WardianError

PORT = 1024
PACKET_MAX = 8 + 65536
MARK, CLOCK = 0xA5, 0x5A
_ANSWER = re.compile(rb"OK \d{1,10}\n")
_ANSWER_MAX = 32
_LOOK_S = 0.002
_PIECE = 1 << 17


class LinkBroken(WardianError):
    """What came over the link makes no sense."""

    kind, code = Kind.GUEST, "link_broken"


async def connected(jail: Jail, timeout_s: float) -> socket.socket:
    """A stream to the agent in the guest, as soon as it listens. Raises ``TimeoutError``."""
    async with asyncio.timeout(timeout_s):
        while True:
            stream = await _try(jail)
            if stream is not None:
                return stream
            await asyncio.sleep(_LOOK_S)  # Firecracker has no event for a guest that begins to listen


async def _try(jail: Jail) -> socket.socket | None:
    loop = asyncio.get_running_loop()
    try:
        stream = jail.connect(Names.VSOCK)
    except OSError:
        return None  # the machine has not been started yet
    try:
        await loop.sock_sendall(stream, f"CONNECT {PORT}\n".encode())
        answer = b""
        while not answer.endswith(b"\n"):
            if len(answer) >= _ANSWER_MAX:
                raise LinkBroken(f"Firecracker answered {answer!r} to a connection")
            if not (byte := await loop.sock_recv(stream, 1)):  # not one byte of what follows
                break
            answer += byte
        if _ANSWER.fullmatch(answer):
            return stream
        if answer:
            raise LinkBroken(f"Firecracker answered {answer!r} to a connection")
    except OSError:
        pass
    except BaseException:
        stream.close()
        raise
    stream.close()
    return None  # nobody listens in there yet


def framed(packet: bytes) -> bytes:
    """A packet as it goes over the stream."""
    return bytes([MARK]) + len(packet).to_bytes(3, "little") + packet


class Unframer:
    """Packets out of a stream that a hostile guest writes."""

    def __init__(self) -> None:
        self._held = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """The packets that are whole now. Raises :class:`LinkBroken`; then nothing more may be fed."""
        self._held += data
        packets = []
        begin = 0
        while begin < len(self._held):
            if self._held[begin] == 0:
                begin += 1
                continue
            if self._held[begin] != MARK:
                raise LinkBroken("the guest's stream makes no sense")
            if len(self._held) - begin < 4:
                break
            size = int.from_bytes(self._held[begin + 1 : begin + 4], "little")
            if not 0 < size <= PACKET_MAX:
                raise LinkBroken(f"the guest sent a packet of {size} bytes")
            if len(self._held) - begin < 4 + size:
                break
            packets.append(bytes(self._held[begin + 4 : begin + 4 + size]))
            begin += 4 + size
        del self._held[:begin]
        return packets


class Link:
    """Carries packets between ``host_end``, a ``SOCK_SEQPACKET`` socket, and one stream after the other."""

    def __init__(self) -> None:
        self.host_end, self._ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.host_end.setblocking(False)
        self._ours.setblocking(False)
        self._stream: socket.socket | None = None
        self._writing = asyncio.Lock()
        self._tasks: list[asyncio.Task[None]] = []

    def carry(self, stream: socket.socket) -> None:
        """Carry over ``stream`` from now on, until :meth:`hold` or the end of either side."""
        self._stream = stream
        self._tasks = [
            asyncio.create_task(self._out(stream), name="link out"),
            asyncio.create_task(self._in(stream), name="link in"),
        ]
        for task in self._tasks:
            task.add_done_callback(self._ended)

    async def hold(self) -> None:
        """Carry nothing, and let go of the stream; ``host_end`` stays. Nothing may be under way: the guest
        has been quiesced."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    async def tell_time(self) -> None:
        """Tell the guest what time it is: its clock has stood still with the machine."""
        if self._stream is not None:
            with suppress(OSError):  # whoever reads finds out
                await self._write(self._stream, bytes([CLOCK]) + time.time_ns().to_bytes(8, "little"))

    async def close(self) -> None:
        """Cut it; whoever has ``host_end`` finds its end."""
        await self.hold()
        self._ours.close()

    async def _out(self, stream: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while packet := await loop.sock_recv(self._ours, PACKET_MAX):
            await self._write(stream, framed(packet))

    async def _write(self, stream: socket.socket, data: bytes) -> None:
        async with self._writing:
            await asyncio.get_running_loop().sock_sendall(stream, data)

    async def _in(self, stream: socket.socket) -> None:
        loop, unframer = asyncio.get_running_loop(), Unframer()
        while data := await loop.sock_recv(stream, _PIECE):
            for packet in unframer.feed(data):
                await loop.sock_sendall(self._ours, packet)

    def _ended(self, task: asyncio.Task[None]) -> None:
        """One direction is over by itself, for whatever reason: so is the other."""
        if task.cancelled():
            return
        task.exception()
        with suppress(OSError):
            self._ours.shutdown(socket.SHUT_RDWR)
        if self._stream is not None:
            with suppress(OSError):
                self._stream.shutdown(socket.SHUT_RDWR)
