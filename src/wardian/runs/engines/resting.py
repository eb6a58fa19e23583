"""When to look after which run that rests."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress

LOOK_MAX_S = 1.0
"""Clocks are set: however far away the next time is, we look."""


class Resting:
    """Of one process. ``due`` is called with a run and what was put aside for it, when its time has come: a
    time of the clock, in seconds since the epoch."""

    def __init__(self, due: Callable[[str, str], None]) -> None:
        self._due = due
        self._waiting: dict[str, tuple[float, str]] = {}
        self._changed = asyncio.Event()

    def put(self, run_id: str, name: str, until: float) -> None:
        self._waiting[run_id] = until, name
        self._changed.set()

    def pop(self, run_id: str) -> str | None:
        """What was put aside for a run, which is waited for no longer; None: nothing was, here."""
        _, name = self._waiting.pop(run_id, (0.0, None))
        return name

    async def watch(self) -> None:
        """For ever."""
        while True:
            now = time.time()
            for run_id in [run_id for run_id, (until, _) in self._waiting.items() if until <= now]:
                _, name = self._waiting.pop(run_id)
                self._due(run_id, name)
            soonest = min((until for until, _ in self._waiting.values()), default=None)
            self._changed.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(None if soonest is None else min(soonest - now, LOOK_MAX_S)):
                    await self._changed.wait()


__all__ = ["Resting"]
