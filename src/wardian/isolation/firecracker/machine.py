"""A running Firecracker machine."""

from __future__ import annotations

import asyncio
import shutil
from functools import partial
from pathlib import Path

from wardian.isolation.firecracker import image as images
from wardian.isolation.firecracker import requests, vsock
from wardian.isolation.firecracker.api import CAPTURE_TIMEOUT_S
from wardian.isolation.firecracker.jail import Names
from wardian.isolation.firecracker.metrics import Counters, read_counters
from wardian.isolation.firecracker.requests import Rate
from wardian.isolation.firecracker.vmm import Vmm, uid_of
from wardian.isolation.host.cgroup import Usage
from wardian.isolation.host.machine import HostMachine
from wardian.isolation.host.process import HeldProcess
from wardian.isolation.host.records import record_of
from wardian.isolation.host.substrate import Substrate
from wardian.isolation.port import IsolationLevel, MachineImage, MachineSpec

RECONNECT_TIMEOUT_S = 10.0
PAUSED = "paused"
"""A file of a jail's home that is there while its machine is, or may be, frozen."""


def roles(vmm: Vmm) -> dict[str, HeldProcess]:
    """The processes that a machine's record names."""
    return {"vmm": vmm.init}


class FirecrackerMachine(HostMachine):
    """See :class:`HostMachine`."""

    level = IsolationLevel.MICROVM_KVM

    def __init__(self, vmm: Vmm, spec: MachineSpec, substrate: Substrate, *, frozen: bool) -> None:
        record = record_of(images.DRIVER_NAME, vmm.id, spec, substrate, roles(vmm))
        super().__init__(vmm, spec, vmm.link.host_end, record, frozen=frozen)
        self._vmm = vmm
        self._substrate = substrate
        self._was_frozen: bool | None = None
        """Before a capture that stopped it, until somebody lets it go on."""

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

    def _usage(self) -> Usage:
        return self._vmm.group.usage()

    def _disk(self) -> Path:
        return self._vmm.jail / Names.DISK

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
            image = images.KIND.describe(directory, self.spec, self._substrate)
            done = True
            return image
        finally:
            if done and stay_stopped:
                self._was_frozen = was_frozen
            else:
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

    async def _give_up_capture(self) -> None:
        if self._was_frozen is not None:
            await self._go_on(frozen=self._was_frozen)
            self._was_frozen = None
