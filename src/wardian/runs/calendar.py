"""When schedules are due. No clock, no I/O."""

from __future__ import annotations

from datetime import UTC, datetime
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from croniter import croniter
from croniter.croniter import CroniterError

from wardian.model.errors import Invalid
from wardian.model.trigger import Schedule, check_cron

_HOUR = 3600 * 1_000_000
_WINDOWS = (_HOUR, 24 * _HOUR, 32 * 24 * _HOUR, 366 * 24 * _HOUR, 9 * 366 * 24 * _HOUR)
"""How far back the latest time is looked for: in the nearest one that has any, there are few."""


def checked(schedule: Schedule) -> Schedule:
    """Raise :class:`Invalid` unless it is ever due."""
    cron = check_cron(schedule.cron)
    try:
        ZoneInfo(schedule.timezone)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise Invalid(
            f"there is no time zone {schedule.timezone[:64]!r}",
            code="bad_timezone",
            hint="as in Europe/Berlin, or UTC",
        ) from None
    told = Schedule(cron, schedule.timezone, schedule.missed, schedule.overlap)
    try:
        next_due(told, int(datetime.now(UTC).timestamp() * 1e6))
    except (CroniterError, ValueError, KeyError) as error:
        raise Invalid(
            f"{cron!r} is no schedule: {error}",
            code="bad_schedule",
            hint="five fields: minute, hour, day of month, month, day of week; '0 9 * * mon-fri'",
        ) from None
    return told


def next_due(schedule: Schedule, after: int) -> int:
    """The first time later than ``after``; both in microseconds since the epoch."""
    zone = ZoneInfo(schedule.timezone)
    times = croniter(schedule.cron, datetime.fromtimestamp(after / 1e6, zone))
    while True:
        found: datetime = times.get_next(datetime)
        if not (found.fold and schedule.at_fixed_hours):
            return int(found.timestamp()) * 1_000_000


def latest_due(schedule: Schedule, first: int, now: int) -> int:
    """The last time that is not later than ``now``, of those from ``first`` on, which is one."""
    for window in _WINDOWS:
        latest, at = None, max(first - 1, now - window)
        while (at := next_due(schedule, at)) <= now:
            latest = at
        if latest is not None:
            return max(latest, first)
    return first


__all__ = ["checked", "latest_due", "next_due"]
