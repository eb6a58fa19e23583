"""JavaScript and TypeScript: ``kernel.js`` on node, which speaks Jupyter's messages over two pipes."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any, Self

from .kernels import KernelDied, Message
from .processes import KernelProcess, watch

PROGRAM = Path(__file__).with_name("kernel.js")
LINE_MAX = 64 * 1024 * 1024


class NodeKernel:
    """A node process. Whatever its programs write to descriptors 1 and 2 is output, too."""

    def __init__(
        self, process: KernelProcess, requests: asyncio.StreamWriter, outputs: asyncio.Queue[Any]
    ) -> None:
        self._process = process
        self._requests = requests
        self._outputs = outputs
        self._count = 0
        self._readers: list[asyncio.Task[None]] = []

    @classmethod
    async def start(cls, language: str, cwd: str, env: Mapping[str, str]) -> Self:
        """Start node and wait until it is ready. KernelDied if it ends first."""
        request_end, requests = os.pipe()
        messages, message_end = os.pipe()
        child = await asyncio.create_subprocess_exec(
            "node",
            "--experimental-vm-modules",  # or cells could not import
            "--no-warnings",
            str(PROGRAM),
            language,
            str(request_end),
            str(message_end),
            cwd=cwd,
            env=env,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            pass_fds=(request_end, message_end),
            start_new_session=True,
        )
        os.close(request_end)
        os.close(message_end)
        outputs: asyncio.Queue[Any] = asyncio.Queue()
        kernel = cls(watch(child), await _writer(requests), outputs)
        kernel._readers = [  # kept, or they might be collected
            asyncio.create_task(_read_messages(messages, outputs)),
            asyncio.create_task(_read_stream("stdout", child.stdout, outputs)),
            asyncio.create_task(_read_stream("stderr", child.stderr, outputs)),
        ]
        async for _ in kernel.execute("", silent=True):
            pass
        return kernel

    async def execute(self, code: str, *, silent: bool = False) -> AsyncIterator[Message]:
        self._count += 1
        request = {"id": self._count, "code": code, "silent": silent}
        self._requests.write(json.dumps(request).encode() + b"\n")
        while True:
            message = await self._outputs.get()
            if message is None:
                raise KernelDied
            if message["kind"] == "idle":
                if message["id"] == self._count:
                    return
            elif not silent:
                yield Message(message["kind"], message["content"])

    def interrupt(self) -> None:
        self._process.interrupt()

    async def stop(self) -> None:
        await self._process.kill()
        self._requests.close()


async def _writer(descriptor: int) -> asyncio.StreamWriter:
    loop = asyncio.get_running_loop()
    transport, protocol = await loop.connect_write_pipe(
        asyncio.streams.FlowControlMixin, os.fdopen(descriptor, "wb")
    )
    return asyncio.StreamWriter(transport, protocol, None, loop)


async def _read_messages(descriptor: int, outputs: asyncio.Queue[Any]) -> None:
    reader = asyncio.StreamReader(limit=LINE_MAX)
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(descriptor, "rb")
    )
    try:
        async for line in reader:
            outputs.put_nowait(json.loads(line))
    finally:
        outputs.put_nowait(None)


async def _read_stream(name: str, pipe: asyncio.StreamReader | None, outputs: asyncio.Queue[Any]) -> None:
    assert pipe is not None
    while chunk := await pipe.read(65536):
        text = chunk.decode("utf-8", "replace")
        outputs.put_nowait({"kind": "stream", "content": {"name": name, "text": text}})
