"""Which processors a machine runs on: one while one is enough, every one once it is busy.

The guest's kernel and the stub in which guest code runs hand every system call and page fault to each other.
On one processor that is a switch of context; between two it is an interrupt and a wake-up, which costs
several times as much, most of all inside a virtual machine. So a machine starts on one processor, and is let
loose as soon as it uses most of that.
"""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Collection, Iterator
from contextlib import suppress

from wardian.isolation.host.cgroup import Cgroup

WINDOW_S = 0.2
BUSY_SHARE = 0.6  # of one processor, over a window
PASSES = 4  # over the threads, which may have made new ones meanwhile

_turns: Iterator[int] = itertools.count()


class Placement:
    """Where one machine runs. Without the right to choose, the kernel goes on choosing."""

    def __init__(self, cgroup: Cgroup) -> None:
        self._cgroup = cgroup
        self._all = sorted(os.sched_getaffinity(0))
        self._narrow = False
        self._used_ns = 0
        self._timer: asyncio.TimerHandle | None = None

    @property
    def narrow(self) -> bool:
        """Whether it is confined to one processor."""
        return self._narrow

    def begin(self) -> None:
        """The machine runs from now on: confine it, and watch whether that is enough."""
        if not self._narrow and len(self._all) > 1:
            self._narrow = self._confine((self._all[next(_turns) % len(self._all)],))
        self.stop()
        self._used_ns = 0
        if self._narrow:
            self._look()

    def stop(self) -> None:
        """Watch no more: it is frozen or gone."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        self._timer = None
        try:
            used = self._cgroup.cpu_ns()
        except OSError:
            return  # gone
        before, self._used_ns = self._used_ns, used
        if before and used - before > BUSY_SHARE * WINDOW_S * 1e9:
            self._confine(self._all)
            self._narrow = False
            return
        self._timer = asyncio.get_running_loop().call_later(WINDOW_S, self._look)

    def _confine(self, processors: Collection[int]) -> bool:
        seen: set[int] = set()
        for _ in range(PASSES):
            new = set(self._cgroup.threads()) - seen
            for thread in new:
                with suppress(ProcessLookupError):
                    try:
                        os.sched_setaffinity(thread, processors)
                    except PermissionError:
                        return False
            seen |= new
            if not new:
                break
        return bool(seen)


__all__ = ["Placement"]
