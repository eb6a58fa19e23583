"""A QEMU that waits: for the image that it will be a clone of, or to be replaced by one that boots."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from wardian.isolation.host.directory import DISK
from wardian.isolation.host.disk import DiskTemplates, copy_sparse_to
from wardian.isolation.host.kept import destroy_remains
from wardian.isolation.host.launching import BootFailed
from wardian.isolation.host.prepared import HostPrepared
from wardian.isolation.port import ImageRefused, Machine, MachineGone, MachineImage
from wardian.isolation.qemu import image as images
from wardian.isolation.qemu.launch import Launch, launch
from wardian.isolation.qemu.machine import QemuMachine
from wardian.isolation.qemu.qmp import Qmp, QmpBroken, QmpRefused
from wardian.isolation.qemu.vmm import Vmm

BOOT_TIMEOUT_S = 60.0
RESTORE_TIMEOUT_S = 60.0
_LOOK_S = 0.001


class QemuPrepared(HostPrepared):
    """See :class:`HostPrepared`."""

    def __init__(self, plan: Launch, vmm: Vmm, disks: DiskTemplates, hold: Callable[[Vmm], None]) -> None:
        super().__init__(plan.machine_id, plan.spec)
        self._plan = plan
        self._vmm = vmm
        self._disks = disks
        self._hold = hold

    async def park(self) -> None:
        if not self.consumed:
            self._vmm.check_alive()  # it has no processor yet, so there is nothing to stop

    async def start(self) -> Machine:
        self._begin()
        await self._vmm.retire()
        self._vmm.link.close()
        disk = self._plan.directory / DISK
        disk.unlink(missing_ok=True)
        await self._disks.make(self.spec.resources.disk_mib, disk)
        self._vmm = await launch(self._plan, boot=True)
        self._hold(self._vmm)
        try:
            async with asyncio.timeout(BOOT_TIMEOUT_S), self._vmm.conversation() as qmp:
                await _port_open(qmp)
        except TimeoutError:
            raise BootFailed(f"machine {self.id} did not boot within {BOOT_TIMEOUT_S:g} s") from None
        except QmpBroken as error:
            raise BootFailed(f"machine {self.id} did not boot: {error.message}") from error
        return self._machine()

    async def restore(self, image: MachineImage) -> Machine:
        await asyncio.to_thread(images.check_image, image, self.spec, self._plan.ground.substrate)
        self._begin()
        try:
            async with self._vmm.conversation() as qmp:
                await self._fill_disk(image)
                await self._give_memory(qmp, image)
                await self._load_devices(qmp, image)
                await qmp.call("cont")
        except (QmpRefused, QmpBroken, MachineGone, OSError) as error:
            raise ImageRefused(f"the image cannot be restored, it is damaged: {error}") from error
        self._vmm.tell_time()
        return self._machine()

    async def discard(self) -> None:
        await self._vmm.kill()
        self._vmm.link.close()
        # Between the one that waited and the one that boots nobody holds them.
        await destroy_remains(self._plan.directory, self._plan.cgroup)

    def _begin(self) -> None:
        self.consume()
        self._vmm.check_alive()

    async def _fill_disk(self, image: MachineImage) -> None:
        fd = os.open(self._plan.directory / DISK, os.O_RDWR | os.O_CLOEXEC)  # the very file that QEMU has
        try:
            await asyncio.to_thread(copy_sparse_to, image.directory / images.DISK_FILE, fd)
        finally:
            os.close(fd)

    async def _give_memory(self, qmp: Qmp, image: MachineImage) -> None:
        """Map the image's memory: pages are shared until they are written to."""
        with _opened(image, images.MEMORY) as fd:
            # QEMU takes no descriptors by name yet; but what comes along with a command is open in it, until
            # the next one comes. Opening it anew needs no name either.
            await qmp.call("query-version", fds=[fd])
            number = self._vmm.number_of(fd)
        await qmp.call(
            "object-add", qom_type="memory-backend-file", id="ram", size=image.files[images.MEMORY],
            mem_path=f"/proc/self/fd/{number}", share=False, readonly=True, rom="off",
        )  # fmt: skip
        await qmp.call("qom-set", path="/machine", property="memory-backend", value="/objects/ram")
        await qmp.call("x-exit-preconfig")

    async def _load_devices(self, qmp: Qmp, image: MachineImage) -> None:
        with _opened(image, images.DEVICES) as fd:
            name = await qmp.give(fd)
        await qmp.call("migrate-incoming", uri=f"file:{name}")
        async with asyncio.timeout(RESTORE_TIMEOUT_S):
            while (status := (await qmp.call("query-migrate")).get("status")) != "completed":
                if status in ("failed", "cancelled"):
                    raise ImageRefused("QEMU refused the image's devices")
                await asyncio.sleep(_LOOK_S)

    def _machine(self) -> QemuMachine:
        return QemuMachine(self._vmm, self.spec, self._plan.ground, self._plan.tools.ram, frozen=False)


async def _port_open(qmp: Qmp) -> None:
    """Return when our init is up, which opens the port."""
    while not (await qmp.event("VSERPORT_CHANGE")).get("open"):
        pass


@contextmanager
def _opened(image: MachineImage, name: str) -> Iterator[int]:
    fd = os.open(image.directory / name, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


__all__ = ["QemuPrepared"]
