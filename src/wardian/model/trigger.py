"""What begins runs by itself: a schedule, or a webhook."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from wardian.model.confines import FREE, Confines
from wardian.model.errors import Invalid

HOOK_PATH = "/hooks/"
_FIELDS = re.compile(r"\S+( \S+){4}")


class Missed(StrEnum):
    """What becomes of times at which no server ran."""

    ONCE = "once"  # one run, for the latest of them
    SKIP = "skip"


class Overlap(StrEnum):
    """What becomes of a time at which the run before is still under way."""

    ALLOW = "allow"  # another run beside it
    SKIP = "skip"
    QUEUE = "queue"  # after it has ended; of several such times, the latest


@dataclass(frozen=True, slots=True)
class Schedule:
    """``cron`` has five fields, in the clock time of ``timezone``. A clock time that comes twice, when summer
    ends, counts once unless the hour is a pattern."""

    cron: str
    timezone: str = "UTC"
    missed: Missed = Missed.ONCE
    overlap: Overlap = Overlap.ALLOW

    @property
    def at_fixed_hours(self) -> bool:
        return not set("*/") & set(self.cron.split(" ")[1])


@dataclass(frozen=True, slots=True)
class AgentTrigger:
    """One way in which an agent's runs begin. ``schedule`` or ``secret``, which is sealed. Times are
    microseconds since the epoch; ``next_at`` is the time that a schedule waits for."""

    id: str
    tenant: str
    agent_id: str
    created_at: int
    input: Any = None
    schedule: Schedule | None = None
    secret: str | None = None
    next_at: int | None = None
    last_run: str | None = None
    confines: Confines = FREE

    @property
    def kind(self) -> str:
        return "webhook" if self.schedule is None else "schedule"


def check_cron(cron: str) -> str:
    """With single spaces. Raises :class:`Invalid` unless it has five fields."""
    told = " ".join(cron.split())
    if not _FIELDS.fullmatch(told) or len(told) > 128:
        raise Invalid(
            f"{cron[:64]!r} is no schedule",
            code="bad_schedule",
            hint="five fields: minute, hour, day of month, month, day of week; '0 9 * * mon-fri'",
        )
    return told


__all__ = ["HOOK_PATH", "AgentTrigger", "Missed", "Overlap", "Schedule", "check_cron"]
