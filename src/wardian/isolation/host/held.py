"""What one machine holds on the host, from its start to its end."""

from __future__ import annotations

import asyncio
import signal
from abc import ABC, abstractmethod
from collections.abc import Callable

from wardian.isolation.host.process import HeldProcess
from wardian.isolation.port import MachineExit, MachineGone


class Held(ABC):
    """When the machine ends, everything it holds is released, exactly once.

    ``init`` is the first process of its pid namespace: when that ends, all have.
    """

    def __init__(self, machine_id: str, init: HeldProcess) -> None:
        self.id = machine_id
        self.init = init
        self._asked_to_die = False
        self._end = asyncio.create_task(self._await_end(), name=f"end of machine {machine_id}")

    def check_alive(self) -> None:
        """Raise :class:`MachineGone` if it has ended."""
        if self._end.done() or not self.init.alive:
            raise MachineGone(f"machine {self.id} is gone")

    async def kill(self) -> MachineExit:
        """End it and release everything. Idempotent."""
        if not self._end.done():
            self._asked_to_die = True
            self.init.send(signal.SIGKILL)
        return await self.wait()

    async def wait(self) -> MachineExit:
        """Return when it has ended and everything is released. MachineGone if it was let go: it is not
        ours."""
        try:
            return await asyncio.shield(self._end)
        except asyncio.CancelledError:
            if self._end.cancelled():
                raise MachineGone(f"machine {self.id} was let go by this process") from None
            raise

    def on_end(self, callback: Callable[[], object]) -> None:
        """Call back when the machine has ended or was let go."""
        self._end.add_done_callback(lambda _: callback())

    async def let_go(self) -> None:
        """Close our handles and leave the machine running."""
        if not self._end.done():
            self._end.cancel()
            await asyncio.wait([self._end])
        await self._close()

    @abstractmethod
    async def _await_end(self) -> MachineExit:
        """Wait for the end, and release everything."""

    @abstractmethod
    async def _close(self) -> None:
        """Close our handles. Idempotent."""


__all__ = ["Held"]
