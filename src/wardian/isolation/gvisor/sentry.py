"""A sentry: a machine's processes and holdings, and the calls it takes."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Sequence
from typing import Any

from wardian.isolation.gvisor import create, urpc
from wardian.isolation.gvisor.urpc import CALL_TIMEOUT_S, UrpcBroken
from wardian.isolation.host.cgroup import Cgroup
from wardian.isolation.host.directory import CONTROL, MachineDirectory
from wardian.isolation.host.kept import Greeting, Kept
from wardian.isolation.port import MachineGone

DYING_S = 1.0
_PANIC_MARKS = ("panic:", "fatal error:", "SIGSYS", "goroutine ")


class Sentry(Kept):
    """See :class:`Kept`."""

    def __init__(
        self, machine_id: str, directory: MachineDirectory, cgroup: Cgroup, greeting: Greeting
    ) -> None:
        super().__init__(machine_id, directory, cgroup, greeting)
        self.process = create.sentry_below(greeting.init, directory)  # usually init itself

    async def call(
        self, method: str, arg: object = None, *, fds: Sequence[int] = (), timeout_s: float = CALL_TIMEOUT_S
    ) -> Any:
        """A urpc call. Raises :class:`MachineGone` if the machine died over it."""
        try:
            control = self.directory.connect(CONTROL, socket.SOCK_STREAM)
            return await urpc.call(control, method, arg, fds=fds, timeout_s=timeout_s)
        except (OSError, UrpcBroken) as error:
            # A dying process closes its sockets a little before it is dead.
            if (await asyncio.wait([self._end], timeout=DYING_S))[0]:
                end = self._end.result()
                raise MachineGone(f"machine {self.id} is gone: {end.reason}") from error
            if isinstance(error, OSError):
                raise UrpcBroken(f"the sentry of {self.id} takes no calls: {error}") from error
            raise

    def stop(self) -> None:
        """SIGSTOP. Only for a sentry that is paused or has not started: stubs caught mid-hand-off would
        spin."""
        self.process.send(signal.SIGSTOP)

    def proceed(self) -> None:
        """SIGCONT."""
        self.process.send(signal.SIGCONT)

    def _broke(self, status: str, last_words: str) -> bool:
        return any(mark in last_words for mark in _PANIC_MARKS)

    async def _close(self) -> None:
        await super()._close()
        self.process.close()


__all__ = ["Sentry"]
