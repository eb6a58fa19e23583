"""A QEMU process: a machine's holdings, and the conversations with it."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from wardian.isolation.host.kept import Kept
from wardian.isolation.port import MachineGone
from wardian.isolation.qemu.qmp import Qmp, QmpBroken, conversation

DYING_S = 1.0


class Vmm(Kept):
    """See :class:`Kept`."""

    @asynccontextmanager
    async def conversation(self) -> AsyncIterator[Qmp]:
        """Talk to QEMU. Raises :class:`MachineGone` if the machine died over it."""
        try:
            async with conversation(self.directory) as qmp:
                yield qmp
        except QmpBroken as error:
            # A dying process closes its sockets a little before it is dead.
            if (await asyncio.wait([self._end], timeout=DYING_S))[0]:
                end = self._end.result()
                raise MachineGone(f"machine {self.id} is gone: {end.reason}: {end.detail}") from error
            raise

    def number_of(self, fd: int) -> int:
        """Under what number QEMU has the file that we have as ``fd``."""
        ours = os.fstat(fd)
        for name in os.listdir(f"/proc/{self.init.pid}/fd"):
            with suppress(OSError):  # it may be closed by now
                there = os.stat(f"/proc/{self.init.pid}/fd/{name}")
                if (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino):
                    return int(name)
        raise QmpBroken(f"the QEMU of {self.id} did not take a descriptor")

    def tell_time(self) -> None:
        """Set the guest's clock to the host's: it has stood still with the machine."""
        self.keeper.send(signal.SIGUSR1)


__all__ = ["Vmm"]
