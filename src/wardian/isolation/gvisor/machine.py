"""A running gVisor machine."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from wardian.isolation.gvisor import image as images
from wardian.isolation.gvisor.placement import Placement
from wardian.isolation.gvisor.profile import FD_DISK
from wardian.isolation.gvisor.sentry import Sentry
from wardian.isolation.gvisor.urpc import UrpcRefused
from wardian.isolation.host.cgroup import Limits, Usage
from wardian.isolation.host.directory import DISK, PAUSED
from wardian.isolation.host.machine import HostMachine
from wardian.isolation.host.process import HeldProcess
from wardian.isolation.host.records import record_of
from wardian.isolation.host.substrate import Substrate
from wardian.isolation.port import IsolationLevel, MachineExit, MachineImage, MachineSpec

CHECKPOINT_TIMEOUT_S = 600.0
HOST_PROCESSES = 3
"""Processes of every machine that are not the guest's: keeper, sentry and the stub that all others are copied
from."""


def roles(sentry: Sentry) -> dict[str, HeldProcess]:
    """The processes that a machine's record names."""
    return {"keeper": sentry.keeper, "sentry": sentry.process}


class GvisorMachine(HostMachine):
    """See :class:`HostMachine`."""

    level = IsolationLevel.GVISOR

    def __init__(self, sentry: Sentry, spec: MachineSpec, substrate: Substrate, *, frozen: bool) -> None:
        record = record_of(images.DRIVER_NAME, sentry.id, spec, substrate, roles(sentry))
        super().__init__(sentry, spec, sentry.link, record, frozen=frozen)
        self._sentry = sentry
        self._substrate = substrate
        self._stop_watching: Callable[[], None] = lambda: None
        self._placement = Placement(sentry.cgroup)
        if not frozen:
            self._placement.begin()

    def on_memory_pressure(self, callback: Callable[[], None]) -> None:
        self._stop_watching()
        limits = Limits.of(self.spec.resources)
        with suppress(FileNotFoundError):  # a machine that just ended has no pressure
            self._stop_watching = self._sentry.cgroup.watch_pressure(limits, callback)

    async def kill(self) -> None:
        self._stop_all_watching()
        await super().kill()

    async def wait(self) -> MachineExit:
        end = await super().wait()
        self._stop_all_watching()
        return end

    def _stop_all_watching(self) -> None:
        self._stop_watching()
        self._placement.stop()

    def _usage(self) -> Usage:
        return self._sentry.cgroup.usage()

    def _disk(self) -> Path:
        image = self._sentry.directory / DISK
        # A disk in memory is known only by the sentry's descriptor.
        return image if image.exists() else Path(f"/proc/{self._sentry.process.pid}/fd/{FD_DISK}")

    def _guest_processes(self, usage: Usage) -> int:
        return max(0, usage.processes - HOST_PROCESSES)

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

    async def _capture(self, directory: Path, *, stay_stopped: bool) -> MachineImage:
        if self._frozen:
            self._sentry.proceed()
        elif stay_stopped:
            await self._pause()
        try:
            with images.opened(directory, write=True) as fds:
                await self._sentry.call(
                    "containerManager.Checkpoint", images.CHECKPOINT, fds=fds, timeout_s=CHECKPOINT_TIMEOUT_S
                )
            return images.KIND.describe(directory, self.spec, self._substrate)
        except BaseException:
            if stay_stopped and not self._frozen:
                await self._resume()
            raise
        finally:
            if self._frozen:
                self._sentry.stop()

    async def _give_up_capture(self) -> None:
        if not self._frozen and (self._sentry.directory / PAUSED).exists():
            await self._resume()


__all__ = ["GvisorMachine", "roles"]
