"""Kernels that speak Jupyter's protocol, over unix sockets."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, Self

import zmq.asyncio
from jupyter_client.asynchronous.client import AsyncKernelClient
from jupyter_client.connect import write_connection_file

from .kernels import KernelDied, Message
from .processes import KernelProcess

START_S = 60
LATE_S = 1.0
"""After a kernel has answered, its last output (which takes another way) is waited for at most so long."""

Launch = Callable[[str], Awaitable[KernelProcess]]
"""Starts a kernel process, given the path of its connection file."""


class JupyterKernel:
    """A kernel process and a client of it."""

    def __init__(self, process: KernelProcess, client: AsyncKernelClient, directory: Path) -> None:
        self._process = process
        self._client = client
        self._directory = directory

    @property
    def alive(self) -> bool:
        return self._process.alive

    @classmethod
    async def start(cls, launch: Launch) -> Self:
        """A kernel that answers. KernelDied if it ends before it does, TimeoutError after a minute."""
        directory = Path(tempfile.mkdtemp(prefix="kernel-"))
        file, _ = write_connection_file(
            str(directory / "connection.json"), transport="ipc", ip=str(directory / "socket")
        )
        client = AsyncKernelClient(context=zmq.asyncio.Context.instance())
        client.load_connection_file(file)
        kernel = cls(await launch(file), client, directory)
        try:
            client.start_channels(stdin=False, hb=False)
            client.iopub_channel.socket.set(zmq.RCVHWM, 0)  # output is bounded by whoever reads it
            async with asyncio.timeout(START_S):
                await kernel._or_death(kernel._answer())
        except BaseException:
            await kernel.stop()
            raise
        return kernel

    async def _answer(self) -> None:
        """Wait until the kernel is up *and* its output arrives here: the subscription takes its own time."""
        while True:
            asked = self._client.kernel_info()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1):
                    while (await self._client.get_shell_msg())["parent_header"]["msg_id"] != asked:
                        pass
                    while not _is_idle(await self._client.get_iopub_msg(), asked):
                        pass
                    return

    async def execute(self, code: str, *, silent: bool = False) -> AsyncIterator[Message]:
        client = self._client
        asked = client.execute(code, silent=silent, store_history=not silent, allow_stdin=False)
        reply = asyncio.create_task(self._reply(asked))
        try:
            while True:
                output = asyncio.create_task(client.get_iopub_msg())
                try:
                    message = await self._output(output, reply)
                finally:
                    output.cancel()
                if message is None or _is_idle(message, asked):
                    break
                if message["parent_header"].get("msg_id") == asked:
                    yield Message(
                        message["msg_type"], message["content"], message["header"]["date"].isoformat()
                    )
            await self._or_death(asyncio.shield(reply))
        finally:
            reply.cancel()

    async def _output(self, output: asyncio.Task[Any], reply: asyncio.Task[None]) -> Any:
        """The next message; None when the kernel has answered and says nothing more."""
        exited = self._process.exited
        await asyncio.wait({output, reply, exited}, return_when=asyncio.FIRST_COMPLETED)
        if not output.done() and reply.done():
            await asyncio.wait({output, exited}, timeout=LATE_S, return_when=asyncio.FIRST_COMPLETED)
        if output.done():
            return output.result()
        if exited.done():
            raise KernelDied
        return None

    async def _reply(self, asked: str) -> None:
        while (await self._client.get_shell_msg())["parent_header"].get("msg_id") != asked:
            pass

    async def _or_death(self, awaitable: Awaitable[None]) -> None:
        task = asyncio.ensure_future(awaitable)
        await asyncio.wait({task, self._process.exited}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            task.cancel()
            raise KernelDied
        task.result()

    def interrupt(self) -> None:
        self._process.interrupt()

    async def stop(self) -> None:
        await self._process.kill()
        self._client.stop_channels()
        shutil.rmtree(self._directory, ignore_errors=True)


def _is_idle(message: Any, asked: str) -> bool:
    return bool(
        message["msg_type"] == "status"
        and message["content"]["execution_state"] == "idle"
        and message["parent_header"].get("msg_id") == asked
    )
