"""A running Firecracker machine."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from wardian.isolation.firecracker import image as images
from wardian.isolation.firecracker import requests, vsock
from wardian.isolation.firecracker.api import CAPTURE_TIMEOUT_S
from wardian.isolation.firecracker.jail import Names
from wardian.isolation.firecracker.metrics import Counters, read_counters
from wardian.isolation.firecracker.requests import Rate
from wardian.isolation.firecracker.vmm import Vmm, uid_of
from wardian.isolation.host.process import start_time
from wardian.isolation.port import (
    IsolationLevel,
    Machine,
    MachineExit,
    MachineGone,
    MachineImage,
    MachineSpec,
    MachineStats,
)

RECONNECT_TIMEOUT_S = 10.0
PAUSED = "paused"
"""A file of a jail's home that is there while its machine is, or may be, frozen."""

_T = TypeVar("_T")


class FirecrackerMachine(Machine):
    """See :class:`Machine`."""

    level = IsolationLevel.MICROVM_KVM

    def __init__(
        self,
        vmm: Vmm,
        spec: MachineSpec,
        version: str,
        build: str,
        cpu_features: frozenset[str],
        *,
        frozen: bool,
    ) -> None:
        self.id = vmm.id
        self.spec = spec
        self.link = vmm.link.host_end
        self._vmm = vmm
        self._build, self._cpu_features = build, cpu_features
        self._frozen = frozen
        self._turn = asyncio.Lock()
        self._record = {
            "driver": images.DRIVER_NAME,
            "id": self.id,
            "root": {"path": str(spec.root.path), "digest": spec.root.digest},
            "resources": asdict(spec.resources),
            "version": version,
            "build": build,
            "cpu_features": sorted(cpu_features),
            "vmm": {"pid": vmm.process.pid, "start": start_time(vmm.process.pid)},
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
        image = await self._undivided(partial(self._capture, directory, stay_stopped=not keep_running))
        if not keep_running:
            await self.kill()
        return image

    async def stats(self) -> MachineStats:
        try:
            usage = self._vmm.group.usage()
            disk = (self._vmm.jail / Names.DISK).stat().st_blocks * 512
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
            processes=1,  # the guest's are behind its kernel: the host sees Firecracker
        )

    async def counters(self) -> Counters:
        """What Firecracker counted of its devices until now."""
        await self._undivided(partial(self._vmm.api.send, [requests.flush_metrics()]))
        return await asyncio.to_thread(read_counters, self._vmm.jail / Names.METRICS)

    async def limit_disk(self, rate: Rate) -> None:
        """Let its disk be this fast from now on."""
        await self._undivided(partial(self._vmm.api.send, [requests.limit(requests.DISK_DRIVE, rate)]))

    async def inflate(self, mib: int) -> None:
        """Ask the guest for so much of its memory; 0 gives it back. What it only freed comes by itself."""
        await self._undivided(partial(self._vmm.api.send, [requests.inflate(mib)]))

    def on_memory_pressure(self, callback: Callable[[], None]) -> None:
        """Never called: the guest's own kernel gives memory back, and kills what takes too much."""

    async def kill(self) -> None:
        await self._vmm.kill()
        async with self._turn:
            pass  # what a cancelled call had left under way has failed by now

    async def wait(self) -> MachineExit:
        return await self._vmm.wait()

    async def _freeze(self) -> None:
        if not self._frozen:
            (self._vmm.jail.home / PAUSED).touch()
            await self._vmm.api.send([requests.pause()])
            self._frozen = True

    async def _thaw(self) -> None:
        if self._frozen:
            await self._vmm.api.send([requests.resume()])
            await self._vmm.link.tell_time()
            (self._vmm.jail.home / PAUSED).unlink(missing_ok=True)
            self._frozen = False

    async def _capture(self, directory: Path, *, stay_stopped: bool) -> MachineImage:
        """A capture cuts the guest's connections, so ours is let go of, and made anew by whoever thaws."""
        vmm, was_frozen, done = self._vmm, self._frozen, False
        await self._freeze()
        await vmm.link.hold()
        try:
            for place in images.OUT.values():
                vmm.jail.give(place, uid_of(self.id))
            await vmm.api.send([requests.capture()], timeout_s=CAPTURE_TIMEOUT_S)
            await images.copy_sparse(vmm.jail / Names.DISK, directory / images.DISK)
            await asyncio.to_thread(self._take, directory)
            image = images.describe(directory, self.spec, self._build, self._cpu_features)
            done = True
            return image
        finally:
            if not (done and stay_stopped):
                await self._go_on(frozen=was_frozen)

    def _take(self, directory: Path) -> None:
        """What Firecracker wrote becomes ours."""
        for name, place in images.OUT.items():
            shutil.move(self._vmm.jail / place, directory / name)
            shutil.chown(directory / name, 0, 0)
        for name in images.FILES:
            (directory / name).chmod(images.MODE)

    async def _go_on(self, *, frozen: bool) -> None:
        """Run again with a new connection; a machine that was frozen runs just until that is made."""
        await self._vmm.api.send([requests.resume()])
        self._vmm.link.carry(await vsock.connected(self._vmm.jail, RECONNECT_TIMEOUT_S))
        await self._vmm.link.tell_time()
        self._frozen = False
        if frozen:
            await self._freeze()
        else:
            (self._vmm.jail.home / PAUSED).unlink(missing_ok=True)

    async def _undivided(self, work: Callable[[], Awaitable[_T]]) -> _T:
        """Do it after what is under way, and to its end even if the caller is cancelled meanwhile."""

        async def in_turn() -> _T:
            async with self._turn:
                self._vmm.check_alive()
                return await work()

        task = asyncio.ensure_future(in_turn())
        task.add_done_callback(_forget)  # the caller may be gone
        return await asyncio.shield(task)


def _forget(done: asyncio.Future[Any]) -> None:
    if not done.cancelled():
        done.exception()
