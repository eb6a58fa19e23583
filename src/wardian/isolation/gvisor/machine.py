"""A running gVisor machine."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from wardian.isolation.gvisor import image as images
from wardian.isolation.gvisor.placement import Placement
from wardian.isolation.gvisor.profile import FD_DISK
from wardian.isolation.gvisor.sentry import Sentry
from wardian.isolation.gvisor.urpc import UrpcRefused
from wardian.isolation.host.cgroup import Limits
from wardian.isolation.host.directory import DISK, PAUSED
from wardian.isolation.host.process import start_time
from wardian.isolation.host.substrate import Substrate
from wardian.isolation.port import (
    IsolationLevel,
    Machine,
    MachineExit,
    MachineGone,
    MachineImage,
    MachineSpec,
    MachineStats,
    RootImage,
)
from wardian.model.resources import Resources

_T = TypeVar("_T")

CHECKPOINT_TIMEOUT_S = 600.0
HOST_PROCESSES = 3
"""Processes of every machine that are not the guest's: keeper, sentry and the stub that all others are copied
from."""


class GvisorMachine(Machine):
    """See :class:`Machine`."""

    level = IsolationLevel.GVISOR

    def __init__(
        self, sentry: Sentry, spec: MachineSpec, substrate: Substrate, limits: Limits, *, frozen: bool
    ) -> None:
        self.id = sentry.id
        self.spec = spec
        self.link = sentry.link
        self._sentry = sentry
        self._substrate = substrate
        self._limits = limits
        self._frozen = frozen
        self._turn = asyncio.Lock()
        self._repair: asyncio.Future[None] | None = None
        self._stop_watching: Callable[[], None] = lambda: None
        self._placement = Placement(sentry.cgroup)
        if not frozen:
            self._placement.begin()
        self._record = {
            "driver": images.DRIVER_NAME,
            "id": self.id,
            "root": {"path": str(spec.root.path), "digest": spec.root.digest},
            "resources": {
                name: getattr(spec.resources, name)
                for name in ("cpu_count", "memory_mib", "disk_mib", "processes_max")
            },
            "build": substrate.build,
            "version": substrate.version,
            "cpu_features": sorted(substrate.cpu_features),
            "keeper": {"pid": sentry.keeper.pid, "start": start_time(sentry.keeper.pid)},
            "sentry": {"pid": sentry.process.pid, "start": start_time(sentry.process.pid)},
        }

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
            image = await self._undivided(partial(self._capture, directory, stay_paused=not keep_running))
        except asyncio.CancelledError:
            self._repair = asyncio.ensure_future(self._undivided(self._give_up_capture))
            self._repair.add_done_callback(_forget)
            raise
        if not keep_running:
            await self.kill()
        return image

    async def stats(self) -> MachineStats:
        try:
            usage = self._sentry.cgroup.usage()
            disk = self._disk_bytes()
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
            processes=max(0, usage.processes - HOST_PROCESSES),
        )

    def on_memory_pressure(self, callback: Callable[[], None]) -> None:
        self._stop_watching()
        with suppress(FileNotFoundError):  # a machine that just ended has no pressure
            self._stop_watching = self._sentry.cgroup.watch_pressure(self._limits, callback)

    async def kill(self) -> None:
        self._stop_watching()
        self._placement.stop()
        await self._sentry.kill()
        async with self._turn:
            pass  # what a cancelled call had left under way has failed by now, and let go of its files

    async def wait(self) -> MachineExit:
        end = await self._sentry.wait()
        self._stop_watching()
        self._placement.stop()
        return end

    async def let_go(self) -> None:
        """Forget the machine in this process; it runs on."""
        self._stop_watching()
        self._placement.stop()
        await self._sentry.let_go()

    def _disk_bytes(self) -> int:
        image = self._sentry.directory / DISK
        # A disk in memory is known only by the sentry's descriptor.
        path = image if image.exists() else Path(f"/proc/{self._sentry.process.pid}/fd/{FD_DISK}")
        return path.stat().st_blocks * 512

    async def _freeze(self) -> None:
        if not self._frozen:
            await self._pause()
            self._placement.stop()
            self._sentry.stop()
            self._frozen = True

    async def _thaw(self) -> None:
        if self._frozen:
            self._sentry.proceed()
            await self._resume()
            self._frozen = False
            self._placement.begin()

    async def _pause(self) -> None:
        # Pauses are counted by the sentry, and one Resume too many kills it. The mark lets a later process,
        # which finds the machine without knowing how far we came, ask before it resumes.
        mark = self._sentry.directory / PAUSED
        mark.touch()
        try:
            await self._sentry.call("containerManager.Pause")
        except UrpcRefused:
            mark.unlink()
            raise

    async def _resume(self) -> None:
        await self._sentry.call("containerManager.Resume")
        (self._sentry.directory / PAUSED).unlink(missing_ok=True)

    async def _capture(self, directory: Path, *, stay_paused: bool) -> MachineImage:
        if self._frozen:
            self._sentry.proceed()
        elif stay_paused:
            await self._pause()
        try:
            with images.opened(directory, write=True) as fds:
                await self._sentry.call(
                    "containerManager.Checkpoint", images.CHECKPOINT, fds=fds, timeout_s=CHECKPOINT_TIMEOUT_S
                )
            return images.describe(directory, self.spec, self._substrate)
        except BaseException:
            if stay_paused and not self._frozen:
                await self._resume()
            raise
        finally:
            if self._frozen:
                self._sentry.stop()

    async def _give_up_capture(self) -> None:
        if not self._frozen and (self._sentry.directory / PAUSED).exists():
            await self._resume()

    async def _undivided(self, work: Callable[[], Awaitable[_T]]) -> _T:
        """Do it after what is under way, and to its end even if the caller is cancelled meanwhile."""

        async def in_turn() -> _T:
            async with self._turn:
                self._sentry.check_alive()
                return await work()

        task = asyncio.ensure_future(in_turn())
        task.add_done_callback(_forget)  # the caller may be gone
        return await asyncio.shield(task)


def _forget(done: asyncio.Future[Any]) -> None:
    if not done.cancelled():
        done.exception()


def machine_spec(record: Mapping[str, Any]) -> MachineSpec:
    """The spec in a machine's record."""
    root = RootImage(path=Path(record["root"]["path"]), digest=record["root"]["digest"])
    return MachineSpec(root=root, resources=Resources(**record["resources"]))


__all__ = ["GvisorMachine", "machine_spec"]
