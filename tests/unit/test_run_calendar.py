"""When schedules are due: time zones, the hours that come twice or never, and times that were missed."""

from __future__ import annotations

from datetime import datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wardian.model.errors import Invalid
from wardian.model.trigger import Schedule
from wardian.runs.calendar import checked, latest_due, next_due

BERLIN = "Europe/Berlin"


def at(text: str, zone: str = BERLIN) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).timestamp()) * 1_000_000


def due(schedule: Schedule, after: int, count: int) -> list[str]:
    found = []
    for _ in range(count):
        after = next_due(schedule, after)
        found.append(datetime.fromtimestamp(after / 1e6, ZoneInfo(schedule.timezone)).isoformat())
    return found


def test_a_clock_time_is_that_of_the_zone() -> None:
    nine = Schedule("0 9 * * *", BERLIN)
    assert due(nine, at("2026-03-28T08:59"), 3) == [
        "2026-03-28T09:00:00+01:00",
        "2026-03-29T09:00:00+02:00",
        "2026-03-30T09:00:00+02:00",
    ]


def test_an_hour_that_comes_twice_counts_once_and_patterns_go_through_both() -> None:
    evening = at("2026-10-24T20:00")
    assert due(Schedule("30 2 * * *", BERLIN), evening, 2) == [
        "2026-10-25T02:30:00+02:00",
        "2026-10-26T02:30:00+01:00",
    ]
    assert due(Schedule("30 * * * *", BERLIN), at("2026-10-25T01:00"), 4) == [
        "2026-10-25T01:30:00+02:00",
        "2026-10-25T02:30:00+02:00",
        "2026-10-25T02:30:00+01:00",
        "2026-10-25T03:30:00+01:00",
    ]


def test_an_hour_that_never_comes_counts_as_the_next_one() -> None:
    (first,) = due(Schedule("30 2 * * *", BERLIN), at("2026-03-28T20:00"), 1)
    assert first == "2026-03-29T03:00:00+02:00"


@given(st.integers(0, 4_000_000_000), st.integers(0, 40 * 24 * 3600))
def test_of_missed_times_the_latest_counts(first_s: int, later_s: int) -> None:
    schedule = Schedule("7 */3 * * *", "UTC")
    first = next_due(schedule, first_s * 1_000_000)
    now = first + later_s * 1_000_000
    latest = latest_due(schedule, first, now)
    assert first <= latest <= now
    assert next_due(schedule, latest) > now


@pytest.mark.parametrize("cron", ["0 0 1 1 *", "0 0 29 2 *", "* * * * *"])
def test_the_latest_of_times_that_are_far_apart_is_found(cron: str) -> None:
    schedule = Schedule(cron)
    first = next_due(schedule, at("2020-01-01T00:00", "UTC"))
    now = at("2027-06-01T12:00", "UTC")
    latest = latest_due(schedule, first, now)
    assert latest <= now < next_due(schedule, latest)


@pytest.mark.parametrize(
    ("cron", "zone", "code"),
    [
        ("* * * *", "UTC", "bad_schedule"),
        ("61 * * * *", "UTC", "bad_schedule"),
        ("* * * * * *", "UTC", "bad_schedule"),
        ("0 0 30 2 *", "UTC", "bad_schedule"),
        ("@daily", "UTC", "bad_schedule"),
        ("0 9 * * *", "Mars/Olympus", "bad_timezone"),
        ("0 9 * * *", "../../etc/passwd", "bad_timezone"),
    ],
)
def test_what_is_never_due_is_refused(cron: str, zone: str, code: str) -> None:
    with pytest.raises(Invalid) as refused:
        checked(Schedule(cron, zone))
    assert refused.value.code == code


def test_a_schedule_is_kept_with_single_spaces() -> None:
    assert checked(Schedule(" 0  9 * *  mon-fri")).cron == "0 9 * * mon-fri"
