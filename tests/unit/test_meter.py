"""The meter's sums: exact, however a range is cut."""

from __future__ import annotations

from dataclasses import astuple

from hypothesis import given, settings
from hypothesis import strategies as st

from wardian.meter.intervals import total
from wardian.model.resources import Resources
from wardian.model.usage import Interval, UsageKind

TIME = st.integers(min_value=0, max_value=10**6)
SMALL = Resources(cpu_count=2, memory_mib=256)


@st.composite
def lives(draw: st.DrawFn) -> list[Interval]:
    """The intervals of one sandbox: one after another, the last perhaps still open."""
    edges = sorted(draw(st.lists(TIME, min_size=1, max_size=8)))
    ends: list[int | None] = [*edges[1:], None]
    return [
        Interval("i", "t", draw(st.sampled_from(UsageKind)), start, end, SMALL, draw(st.integers(0, 2**40)))
        for start, end in zip(edges, ends, strict=True)
    ]


@settings(max_examples=100, deadline=None)
@given(lives(), TIME, TIME, TIME, TIME)
def test_the_parts_of_a_range_sum_to_the_whole(
    life: list[Interval], a: int, b: int, c: int, now: int
) -> None:
    start, middle, end = sorted((a, b, c))
    whole = total(life, start=start, end=end, now=now)
    first = total(life, start=start, end=middle, now=now)
    second = total(life, start=middle, end=end, now=now)
    assert astuple(whole) == tuple(x + y for x, y in zip(astuple(first), astuple(second), strict=True))


@settings(max_examples=100, deadline=None)
@given(lives(), TIME)
def test_every_microsecond_of_a_life_is_metered_once(life: list[Interval], later: int) -> None:
    now = max(life[-1].opened_at, later)
    used = total(life, start=0, end=10**7, now=now)
    assert used.compute_us + used.frozen_us + used.storage_us == now - life[0].opened_at
    assert used.cpu_us == used.compute_us * 2
    assert used.memory_mib_us == used.compute_us * 256
