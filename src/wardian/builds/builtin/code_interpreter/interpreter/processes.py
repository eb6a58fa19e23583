"""The processes behind kernels, however they were started."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal


class KernelProcess:
    """A process that leads a session of its own. ``exited`` is done when it is gone."""

    def __init__(self, pid: int, exited: asyncio.Future[None]) -> None:
        self.pid = pid
        self.exited = exited

    @property
    def alive(self) -> bool:
        """Whether it has not exited."""
        return not self.exited.done()

    def interrupt(self) -> None:
        """Send SIGINT to the process and the programs it runs."""
        self._signal(signal.SIGINT)

    async def kill(self) -> None:
        """SIGKILL all of it, and wait until it is gone."""
        self._signal(signal.SIGKILL)
        await asyncio.wait({self.exited})

    def _signal(self, number: signal.Signals) -> None:
        if self.alive:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, number)


def watch(process: asyncio.subprocess.Process) -> KernelProcess:
    """A child of this very process, started with ``start_new_session``."""
    exited: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    waiting = asyncio.create_task(process.wait(), name=f"wait for {process.pid}")
    waiting.add_done_callback(lambda _: exited.set_result(None))
    return KernelProcess(process.pid, exited)
