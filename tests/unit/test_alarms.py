"""Alarms: never early, never twice, moved and cleared."""

from __future__ import annotations

import asyncio
import time

from wardian.sandboxes.alarms import Alarms


def now_us() -> int:
    return time.time_ns() // 1000


async def test_alarms_ring_in_order_and_never_early() -> None:
    rung: list[tuple[str, int]] = []
    done = asyncio.Event()
    due = {name: now_us() + delay for name, delay in (("c", 60_000), ("a", 20_000), ("b", 40_000))}

    def ring(key: str) -> None:
        rung.append((key, now_us()))
        if len(rung) == 3:
            done.set()

    alarms = Alarms(ring, now_us=now_us)
    for name, at in due.items():
        alarms.set(name, at)
    await asyncio.wait_for(done.wait(), 5)
    assert [name for name, _ in rung] == ["a", "b", "c"]
    assert all(due[name] <= at < due[name] + 1_000_000 for name, at in rung)


async def test_a_moved_alarm_rings_once_and_a_cleared_one_never() -> None:
    rung: list[str] = []
    done = asyncio.Event()

    def ring(key: str) -> None:
        rung.append(key)
        if key == "last":
            done.set()

    alarms = Alarms(ring, now_us=now_us)
    now = now_us()
    alarms.set("moved", now + 5_000)
    alarms.set("moved", now + 30_000)
    alarms.set("earlier", now + 60_000_000)
    alarms.set("earlier", now + 10_000)
    alarms.set("cleared", now + 5_000)
    alarms.clear("cleared")
    alarms.set("last", now + 50_000)
    await asyncio.wait_for(done.wait(), 5)
    assert rung == ["earlier", "moved", "last"]


async def test_an_alarm_in_the_past_rings_at_once_and_many_moves_do_not_pile_up() -> None:
    rung = asyncio.Event()
    alarms = Alarms(lambda key: rung.set(), now_us=now_us)
    for delay in range(10_000):
        alarms.set("busy", now_us() + 60_000_000 + delay)
    assert len(alarms._heap) < 200
    alarms.set("past", 0)
    await asyncio.wait_for(rung.wait(), 5)
    alarms.close()
