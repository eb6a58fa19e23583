"""A booted, empty gVisor machine: a sentry with its devices and its limits, and no guest."""

from __future__ import annotations

import os

from wardian.isolation.gvisor import image as images
from wardian.isolation.gvisor.links import link_arguments, nat_table
from wardian.isolation.gvisor.machine import GvisorMachine
from wardian.isolation.gvisor.sentry import Sentry
from wardian.isolation.gvisor.urpc import UrpcBroken, UrpcRefused
from wardian.isolation.host.prepared import HostPrepared
from wardian.isolation.host.substrate import Substrate
from wardian.isolation.port import ImageRefused, Machine, MachineGone, MachineImage, MachineSpec

RESTORE_S, RESTORE_MIB_PER_S = 30.0, 16
"""A sentry that takes longer for its memory is given up: 0.1 s is usual."""


async def add_links(sentry: Sentry) -> None:
    """Give the machine its devices. Only before it starts: a late one kills the sentry."""
    blob = os.memfd_create("nat")
    try:
        os.write(blob, nat_table())
        os.lseek(blob, 0, os.SEEK_SET)
        await sentry.call("Network.CreateLinksAndRoutes", link_arguments(), fds=[blob])
    finally:
        os.close(blob)


class GvisorPrepared(HostPrepared):
    """See :class:`HostPrepared`."""

    def __init__(self, sentry: Sentry, spec: MachineSpec, substrate: Substrate) -> None:
        super().__init__(sentry.id, spec)
        self._sentry = sentry
        self._substrate = substrate

    async def park(self) -> None:
        if not self.consumed:
            self._sentry.check_alive()
            self._sentry.stop()  # harmless: there are no stubs yet

    async def start(self) -> Machine:
        self._begin()
        try:
            await self._sentry.call("containerManager.StartRoot", self.id)
        except (UrpcRefused, UrpcBroken) as error:
            raise MachineGone(f"machine {self.id} did not start: {error.message}") from error
        return self._machine()

    async def restore(self, image: MachineImage) -> Machine:
        images.KIND.check(image, self.spec, self._substrate)
        self._begin()
        timeout_s = RESTORE_S + self.spec.resources.memory_mib / RESTORE_MIB_PER_S
        with images.opened(image.directory, write=False) as fds:
            try:
                await self._sentry.call(
                    "containerManager.Restore", images.RESTORE, fds=fds, timeout_s=timeout_s
                )
            except (UrpcRefused, UrpcBroken, MachineGone) as error:
                raise ImageRefused(f"the image cannot be restored, it is damaged: {error.message}") from error
        return self._machine()

    async def discard(self) -> None:
        await self._sentry.kill()
        self._sentry.link.close()

    def _begin(self) -> None:
        self.consume()
        self._sentry.proceed()

    def _machine(self) -> GvisorMachine:
        return GvisorMachine(self._sentry, self.spec, self._substrate, frozen=False)


__all__ = ["GvisorPrepared", "add_links"]
