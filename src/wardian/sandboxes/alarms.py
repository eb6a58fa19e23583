"""Alarms: one timer for all of them, set to the earliest. Nothing polls."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable

_SLACK = 64


class Alarms:
    """At most one alarm per key, at a wall-clock time. ``ring(key)`` is called in the loop, never early."""

    def __init__(self, ring: Callable[[str], None], *, now_us: Callable[[], int]) -> None:
        self._ring = ring
        self._now_us = now_us
        self._due: dict[str, int] = {}
        self._heap: list[tuple[int, str]] = []
        self._timer: asyncio.TimerHandle | None = None

    def set(self, key: str, at: int) -> None:
        """Ring for ``key`` at ``at`` (microseconds since the epoch), and no more at any time set before."""
        if self._due.get(key) == at:
            return
        self._due[key] = at
        heapq.heappush(self._heap, (at, key))
        if len(self._heap) > 2 * len(self._due) + _SLACK:
            self._heap = [(due, name) for name, due in self._due.items()]
            heapq.heapify(self._heap)
        self._schedule()

    def clear(self, key: str) -> None:
        """Do not ring for ``key``."""
        self._due.pop(key, None)

    def close(self) -> None:
        self._due.clear()
        self._heap.clear()
        self._schedule()

    def _schedule(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._heap and self._due.get(self._heap[0][1]) != self._heap[0][0]:
            heapq.heappop(self._heap)  # moved or cleared since
        if self._heap:
            delay_s = max(0, self._heap[0][0] - self._now_us()) / 1e6
            self._timer = asyncio.get_running_loop().call_later(delay_s, self._fire)

    def _fire(self) -> None:
        self._timer = None
        now = self._now_us()
        while self._heap and self._heap[0][0] <= now:
            at, key = heapq.heappop(self._heap)
            if self._due.get(key) == at:
                del self._due[key]
                self._ring(key)
        self._schedule()
