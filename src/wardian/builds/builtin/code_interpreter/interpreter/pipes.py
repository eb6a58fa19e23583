"""Kernels that speak Jupyter's messages over pipes, a JSON line each.

Over zmq's sockets a message is handed from thread to thread many times, which is dear in gVisor: 50 ms for
``1 + 1``. A request is ``{"code", "id", "silent"}``. What is said is ``{"kind", "content"}``, and
``{"kind": "idle", "id"}`` ends a request. What a kernel's programs write to descriptors 1 and 2 is output.
"""

from __future__ import annotations

import asyncio
import codecs
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Self

from .kernels import KernelDied, Message
from .processes import KernelProcess

LINE_MAX = 128 * 1024 * 1024
"""More in one message, and the kernel counts as dead. Well above what may wait for a reader."""

CHUNK = 65536
LATE_S = 0.2
"""After a kernel's process has exited, what it said last is waited for so long."""

DRAIN_MAX = 16 * CHUNK
"""What a pipe can hold: so much may have been written before a kernel said that it is idle."""


@dataclass(frozen=True, slots=True)
class Ends:
    """The kernel's ends of its pipes."""

    requests: int
    messages: int
    stdout: int
    stderr: int

    def __iter__(self) -> Iterator[int]:
        return iter((self.requests, self.messages, self.stdout, self.stderr))

    def close(self) -> None:
        """Close all; the kernel has its own copies."""
        for descriptor in self:
            os.close(descriptor)


Launch = Callable[[Ends], Awaitable[KernelProcess]]
"""Starts a kernel process on its ends of the pipes."""


class PipedKernel:
    """A kernel process and our ends of its pipes."""

    def __init__(self, process: KernelProcess, requests: asyncio.StreamWriter) -> None:
        self._process = process
        self._requests = requests
        self._said: asyncio.Queue[Any] = asyncio.Queue()
        self._count = 0
        self._ended = False
        self._raw: list[_Raw] = []
        self._reader: asyncio.Task[None] | None = None
        process.exited.add_done_callback(self._note_exit)

    @property
    def alive(self) -> bool:
        return self._process.alive and not self._ended

    @classmethod
    async def start(cls, launch: Launch) -> Self:
        """A kernel that answers. KernelDied if it ends before it does."""
        pipes = [os.pipe() for _ in range(4)]
        ends = Ends(pipes[0][0], *(write for _, write in pipes[1:]))
        ours = [pipes[0][1], *(read for read, _ in pipes[1:])]
        try:
            process = await launch(ends)
        except BaseException:
            for descriptor in ours:
                os.close(descriptor)
            raise
        finally:
            ends.close()
        kernel = cls(process, await _writer(ours[0]))
        kernel._raw = [_Raw("stdout", ours[2], kernel._said), _Raw("stderr", ours[3], kernel._said)]
        kernel._reader = asyncio.create_task(kernel._read(ours[1]), name=f"messages of {process.pid}")
        try:
            async for _ in kernel.execute("", silent=True):
                pass
        except BaseException:
            await kernel.stop()
            raise
        return kernel

    async def execute(self, code: str, *, silent: bool = False) -> AsyncIterator[Message]:
        self._forget_what_nobody_asked()
        self._count += 1
        request = {"id": self._count, "code": code, "silent": silent}
        self._requests.write(json.dumps(request).encode() + b"\n")
        while True:
            message = await self._said.get()
            if message is None:
                raise KernelDied
            if message["kind"] == "idle":
                if message["id"] == self._count:
                    return
            elif not silent:
                yield Message(message["kind"], message["content"])

    def _forget_what_nobody_asked(self) -> None:
        """What was said since the last execution ended has no reader, as with Jupyter."""
        said: list[Any] = []
        with suppress(asyncio.QueueEmpty):
            while True:
                said.append(self._said.get_nowait())
        if None in said:
            self._said.put_nowait(None)

    async def _read(self, descriptor: int) -> None:
        reader = asyncio.StreamReader(limit=LINE_MAX)
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(descriptor, "rb")
        )
        try:
            async for line in reader:
                message = _message(line)
                if message["kind"] == "idle":
                    for raw in self._raw:
                        raw.drain()
                self._said.put_nowait(message)
        finally:
            self._ended = True
            self._said.put_nowait(None)
            transport.close()

    def _note_exit(self, _: object) -> None:
        """A process it has forked may hold the pipe open, so there need be no end to read."""
        asyncio.get_running_loop().call_later(LATE_S, self._said.put_nowait, None)

    def interrupt(self) -> None:
        self._process.interrupt()

    async def stop(self) -> None:
        await self._process.kill()
        self._requests.close()
        for raw in self._raw:
            raw.close()
        if self._reader is not None:  # something the kernel left behind may hold the pipe open
            self._reader.cancel()


class _Raw:
    """What is written to one of the kernel's descriptors, as text."""

    def __init__(self, name: str, descriptor: int, said: asyncio.Queue[Any]) -> None:
        self._name = name
        self._descriptor = descriptor
        self._said = said
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._open = True
        os.set_blocking(descriptor, False)
        asyncio.get_running_loop().add_reader(descriptor, self._take)

    def drain(self) -> None:
        """Take what has been written so far."""
        taken = 0
        while self._open and taken < DRAIN_MAX and (count := self._take()):
            taken += count

    def _take(self) -> int:
        try:
            chunk = os.read(self._descriptor, CHUNK)
        except BlockingIOError:
            return 0
        if not chunk:
            self.close()
        elif text := self._decoder.decode(chunk):
            self._said.put_nowait(_printed(self._name, text))
        return len(chunk)

    def close(self) -> None:
        if self._open:
            self._open = False
            asyncio.get_running_loop().remove_reader(self._descriptor)
            os.close(self._descriptor)


def _message(line: bytes) -> Any:
    """What a kernel says. What it does not say like that, a program has printed to the wrong descriptor."""
    with suppress(ValueError):
        message = json.loads(line)
        if isinstance(message, dict) and "kind" in message:
            return message
    return _printed("stdout", line.decode("utf-8", "replace"))


def _printed(name: str, text: str) -> Mapping[str, Any]:
    return {"kind": "stream", "content": {"name": name, "text": text}}


async def _writer(descriptor: int) -> asyncio.StreamWriter:
    loop = asyncio.get_running_loop()
    transport, protocol = await loop.connect_write_pipe(
        asyncio.streams.FlowControlMixin, os.fdopen(descriptor, "wb")
    )
    return asyncio.StreamWriter(transport, protocol, None, loop)
