"""What every machine does alike: one thing at a time, each to its end whoever gives up on it."""

from __future__ import annotations

import asyncio
import socket
from abc import abstractmethod
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from wardian.isolation.host.cgroup import Usage
from wardian.isolation.host.held import Held
from wardian.isolation.port import (
    Machine,
    MachineExit,
    MachineGone,
    MachineImage,
    MachineSpec,
    MachineStats,
)

_T = TypeVar("_T")


class HostMachine(Machine):
    """See :class:`Machine`. ``_freeze``, ``_thaw`` and ``_capture`` have the machine to themselves."""

    def __init__(
        self,
        held: Held,
        spec: MachineSpec,
        link: socket.socket,
        record: dict[str, Any],
        *,
        frozen: bool,
    ) -> None:
        self.id = held.id
        self.spec = spec
        self.link = link
        self._held = held
        self._record = record
        self._frozen = frozen
        self._turn = asyncio.Lock()
        self._repair: asyncio.Future[None] | None = None

    @property
    def record(self) -> dict[str, Any]:
        return dict(self._record)

    @property
    def frozen(self) -> bool:
        return self._frozen

    async def freeze(self) -> None:
        await self._undivided(self._freeze)

    async def thaw(self) -> None:
        await self._undivided(self._thaw)

    async def capture(self, directory: Path, *, keep_running: bool) -> MachineImage:
        try:
            image = await self._undivided(partial(self._capture, directory, stay_stopped=not keep_running))
        except asyncio.CancelledError:
            self._repair = asyncio.ensure_future(self._undivided(self._give_up_capture))
            self._repair.add_done_callback(_forget)
            raise
        if not keep_running:
            await self.kill()
        return image

    async def stats(self) -> MachineStats:
        try:
            usage = self._usage()
            disk = self._disk().stat().st_blocks * 512
        except OSError as error:
            raise MachineGone(f"machine {self.id} is gone") from error
        resources = self.spec.resources
        return MachineStats(
            cpu_ns=usage.cpu_ns,
            memory_bytes=usage.memory_bytes,
            memory_limit_bytes=resources.memory_mib << 20,
            memory_cache_bytes=usage.cache_bytes,
            disk_bytes=disk,
            disk_limit_bytes=resources.disk_mib << 20,
            processes=self._guest_processes(usage),
        )

    def on_memory_pressure(self, callback: Callable[[], None]) -> None:
        """Never called: the guest's own kernel gives memory back, and kills what takes too much."""

    async def kill(self) -> None:
        await self._held.kill()
        async with self._turn:
            pass  # what a cancelled call had left under way has failed by now, and let go of its files

    async def wait(self) -> MachineExit:
        return await self._held.wait()

    @abstractmethod
    async def _freeze(self) -> None: ...

    @abstractmethod
    async def _thaw(self) -> None: ...

    @abstractmethod
    async def _capture(self, directory: Path, *, stay_stopped: bool) -> MachineImage:
        """Write the image. Unless it shall stay stopped, or if that fails, the machine goes on as before."""

    @abstractmethod
    async def _give_up_capture(self) -> None:
        """Let a machine go on that was captured to stay stopped, for a caller that is gone."""

    @abstractmethod
    def _usage(self) -> Usage:
        """What its control group measures. Raises ``OSError`` when it is gone."""

    @abstractmethod
    def _disk(self) -> Path:
        """The file that is its disk."""

    def _guest_processes(self, usage: Usage) -> int:
        return 1  # the guest's are behind its kernel: the host sees what runs that

    async def _undivided(self, work: Callable[[], Awaitable[_T]]) -> _T:
        """Do it after what is under way, and to its end even if the caller is cancelled meanwhile."""

        async def in_turn() -> _T:
            async with self._turn:
                self._held.check_alive()
                return await work()

        task = asyncio.ensure_future(in_turn())
        task.add_done_callback(_forget)  # the caller may be gone
        return await asyncio.shield(task)


def _forget(done: asyncio.Future[Any]) -> None:
    if not done.cancelled():
        done.exception()


__all__ = ["HostMachine"]
