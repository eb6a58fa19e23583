"""What carries runs on through crashes, as a port. What a run is stands in our own tables; an engine only
sees to it that whoever works on a run is called again, wherever it was interrupted."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from wardian.model.errors import Unavailable


class EngineUnavailable(Unavailable):
    """The engine's database cannot be used, or not as it is."""

    code = "engine_unreachable"


class EngineLost(EngineUnavailable):
    """Another executor has taken this one's place: nothing more is begun or attempted here."""

    code = "engine_lost"


@dataclass(frozen=True, slots=True)
class Rest:
    """What an attempt ended with: the run is over, or there is nothing to do until ``until`` (microseconds
    since the epoch) or until somebody nudges it."""

    over: bool
    until: int | None = None


Attempt = Callable[[str], Awaitable[Rest]]
"""Works on the run of that id until it rests. Cancelled when the executor may not go on; called again after
that, after a crash and after an error, here or in another executor, and then finds what it had done. An
executor that was stopped beyond its lease finds out after it woke: what an attempt commits needs a fence of
its own, in the transaction."""


class Engine(ABC):
    """Made with an :data:`Attempt`. Several executors may share a database; a run is attempted by one of them
    at a time."""

    @abstractmethod
    async def open(self) -> None:
        """Begin to carry on what was interrupted here, and in executors that are no more. What rested here is
        attempted once it is begun again, which whoever opens this does with all runs that are not over: only
        they know whether anything came of what it waits for. Raises :class:`EngineUnavailable`."""

    @abstractmethod
    async def begin(self, run_id: str, generation: int) -> None:
        """Have attempts made at a run until it is over. Idempotent: again, it is a nudge. Survives a crash
        once it returns. With a higher generation, one that was over is begun again. Raises
        :class:`EngineUnavailable`."""

    @abstractmethod
    def nudge(self, run_id: str) -> None:
        """There is something to do for a run, whichever executor has it: an attempt at it begins after this.
        Returns at once; without effect on a run that is over or unknown."""

    @abstractmethod
    async def forget(self, run_id: str, generation: int) -> bool:
        """Remove what is on record of a run that is over, of every generation up to that one. Idempotent.
        False: something of it is under way yet, and ends soon; ask again. Raises
        :class:`EngineUnavailable`."""

    @abstractmethod
    async def close(self) -> None:
        """Stop. What is under way is carried on by the next :meth:`open`, or by another executor."""


__all__ = ["Attempt", "Engine", "EngineLost", "EngineUnavailable", "Rest"]
