"""Rates: how much a guest may make us do."""

from __future__ import annotations

import time
from collections.abc import Callable


class Bucket:
    """Holds up to ``burst`` tokens and gains ``per_s`` of them each second. Times are monotonic seconds."""

    __slots__ = ("_at", "_burst", "_clock", "_per_s", "_tokens")

    def __init__(self, burst: float, per_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._burst, self._per_s, self._clock = burst, per_s, clock
        self._tokens, self._at = burst, clock()

    def _refill(self) -> None:
        now = self._clock()
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._per_s)
        self._at = now

    def take(self) -> bool:
        """One token, if there is one."""
        self._refill()
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True

    def spend(self, tokens: float) -> float:
        """Take them in any case; the seconds until the debt is paid, 0 when there is none."""
        self._refill()
        self._tokens -= tokens
        return max(0.0, -self._tokens / self._per_s)
