"""Processes we hold by descriptor, so that a reused pid can never be mistaken for them."""

from __future__ import annotations

import asyncio
import os
import select
import signal
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path


def start_time(pid: int) -> int | None:
    """When a process started, in clock ticks since boot; None if there is none. With the pid it names a
    process."""
    with suppress(OSError, ValueError, IndexError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    return None


def run_state(pid: int) -> str:
    """The kernel's letter for a process: R, S, D, T (stopped), Z; empty if there is none."""
    with suppress(OSError, IndexError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return ""


def prefer_for_oom(pid: int) -> None:
    """Make a process the first that the kernel kills when memory is short."""
    with suppress(OSError):
        Path(f"/proc/{pid}/oom_score_adj").write_text("1000")


@dataclass(slots=True)
class HeldProcess:
    """A process and its pidfd, which :meth:`close` gives back."""

    pid: int
    fd: int

    @property
    def alive(self) -> bool:
        """Whether it has not ended yet (a zombie has)."""
        if self.fd < 0:
            return False
        poll = select.poll()  # select() cannot take descriptors above 1023
        poll.register(self.fd, select.POLLIN)
        return not poll.poll(0)

    def send(self, signo: signal.Signals) -> None:
        """Signal it; nothing happens if it is gone."""
        with suppress(ProcessLookupError):
            if self.fd >= 0:
                signal.pidfd_send_signal(self.fd, signo)

    async def ended(self) -> None:
        """Return when it has ended."""
        loop = asyncio.get_running_loop()
        done = asyncio.Event()
        # A duplicate: several may wait, and an event loop knows one reader per descriptor.
        fd = os.dup(self.fd)
        loop.add_reader(fd, done.set)
        try:
            await done.wait()
        finally:
            loop.remove_reader(fd)
            os.close(fd)

    def reap(self) -> None:
        """Collect it if it is our child; otherwise somebody else does."""
        with suppress(ChildProcessError, OSError):
            os.waitid(os.P_PIDFD, self.fd, os.WEXITED | os.WNOHANG)

    def close(self) -> None:
        """Let go of the descriptor."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


__all__ = ["HeldProcess", "prefer_for_oom", "run_state", "start_time"]
