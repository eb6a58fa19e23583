"""What carries runs on through crashes, as a port. What a run is stands in our own tables; an engine only
sees to it that whoever works on a run is called again, wherever it was interrupted."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rest:
    """What an attempt ended with: the run is over, or there is nothing to do until ``until`` (microseconds
    since the epoch) or until somebody nudges it."""

    over: bool
    until: int | None = None


Attempt = Callable[[str], Awaitable[Rest]]
"""Works on the run of that id until it rests. Called again after a crash, and then finds what it had done."""


class Engine(ABC):
    """Made with an :data:`Attempt`."""

    @abstractmethod
    async def open(self) -> None:
        """Begin to carry on what was interrupted."""

    @abstractmethod
    async def begin(self, run_id: str, generation: int) -> None:
        """Have attempts made at a run until it is over. Idempotent; survives a crash once it returns. With a
        higher generation, one that was over is begun again."""

    @abstractmethod
    async def nudge(self, run_id: str) -> None:
        """There is something to do for a run that rests. Without effect on any other."""

    @abstractmethod
    async def close(self) -> None:
        """Stop. What is under way is carried on by the next :meth:`open`."""


__all__ = ["Attempt", "Engine", "Rest"]
