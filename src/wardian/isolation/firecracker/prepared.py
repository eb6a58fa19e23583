"""A Firecracker that waits to be told what it is: a machine that boots, or a clone of an image."""

from __future__ import annotations

from dataclasses import dataclass

from wardian.isolation.firecracker import image as images
from wardian.isolation.firecracker import requests, vsock
from wardian.isolation.firecracker.api import FirecrackerBroken, FirecrackerRefused
from wardian.isolation.firecracker.jail import Names
from wardian.isolation.firecracker.machine import FirecrackerMachine
from wardian.isolation.firecracker.requests import Rate
from wardian.isolation.firecracker.vmm import Vmm, uid_of
from wardian.isolation.host.disk import DiskTemplates
from wardian.isolation.host.launching import BootFailed
from wardian.isolation.host.prepared import HostPrepared
from wardian.isolation.host.substrate import Substrate
from wardian.isolation.port import ImageRefused, Machine, MachineImage, MachineSpec

BOOT_TIMEOUT_S = 30.0
RESTORE_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class Start:
    """How machines are started: how fast their drives are, and what more their kernels are told."""

    rate: Rate | None
    arguments: str
    echo: bool


class FirecrackerPrepared(HostPrepared):
    """See :class:`HostPrepared`."""

    def __init__(
        self, vmm: Vmm, spec: MachineSpec, substrate: Substrate, disks: DiskTemplates, start: Start
    ) -> None:
        super().__init__(vmm.id, spec)
        self._vmm = vmm
        self._substrate = substrate
        self._disks = disks
        self._start = start

    async def park(self) -> None:
        if not self.consumed:
            self._vmm.check_alive()  # it has no processor yet, so there is nothing to stop

    async def start(self) -> Machine:
        self._begin()
        how, vmm = self._start, self._vmm
        await self._disks.make(self.spec.resources.disk_mib, vmm.jail / Names.DISK)
        self._hand_over(Names.DISK)
        vmm.jail.give(Names.METRICS, uid_of(self.id))
        try:
            await vmm.api.send(requests.boot(self.spec, how.rate, arguments=how.arguments, echo=how.echo))
            vmm.link.carry(await vsock.connected(vmm.jail, BOOT_TIMEOUT_S))
        except TimeoutError:
            raise BootFailed(f"machine {self.id} did not boot within {BOOT_TIMEOUT_S:g} s") from None
        except (FirecrackerRefused, FirecrackerBroken, vsock.LinkBroken) as error:
            vmm.check_alive()
            raise BootFailed(f"machine {self.id} did not boot: {error.message}") from error
        return self._machine()

    async def restore(self, image: MachineImage) -> Machine:
        images.check_image(image, self.spec, self._substrate)
        self._begin()
        vmm = self._vmm
        try:
            for name, place in images.IN.items():
                vmm.jail.lend(image.directory / name, place)
            await images.copy_sparse(image.directory / images.DISK, vmm.jail / Names.DISK)
            self._hand_over(Names.DISK)
            vmm.jail.give(Names.METRICS, uid_of(self.id))
            await vmm.api.send(requests.restore())
            vmm.link.carry(await vsock.connected(vmm.jail, RESTORE_TIMEOUT_S))
        except (FirecrackerRefused, FirecrackerBroken, vsock.LinkBroken, OSError, TimeoutError) as error:
            raise ImageRefused(f"the image cannot be restored: {error or type(error).__name__}") from error
        await vmm.link.tell_time()
        return self._machine()

    async def discard(self) -> None:
        await self._vmm.kill()
        self._vmm.link.host_end.close()

    def _begin(self) -> None:
        self.consume()
        self._vmm.check_alive()

    def _hand_over(self, name: str) -> None:
        self._vmm.jail.hand_over(name, uid_of(self.id))

    def _machine(self) -> FirecrackerMachine:
        return FirecrackerMachine(self._vmm, self.spec, self._substrate, frozen=False)
