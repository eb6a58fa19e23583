"""Fifty at once: what everybody gets when more is asked for than any pool holds."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from bench.clients import create_and_run, elapsed
from bench.lab import Lab, Pools
from bench.measure import Kind, Row, Section

BURST = 50
SUBJECT = "Wardian, SDK"


def run(lab: Lab) -> Sequence[Section]:
    repeats = lab.rounds(quick=1, full=5)
    server = lab.server(Pools(hot=2))
    plain = lab.plain()
    peers = lab.peers()
    field: list[tuple[str, Kind, Callable[[], float]]] = [
        (SUBJECT, Kind.WARDIAN, lambda: create_and_run(server.endpoint)),
        ("runsc run", Kind.PEER, peers.runsc.run),
        ("crun run", Kind.PEER, peers.crun.run),
        ("bubblewrap", Kind.PEER, peers.bwrap),
        ("SDK, server does nothing", Kind.FLOOR, lambda: create_and_run(plain)),
    ]
    walls: dict[str, list[float]] = {name: [] for name, _, _ in field}
    singles: dict[str, list[float]] = {name: [] for name, _, _ in field}
    errors: dict[str, str] = {}
    with lab.progress(f"burst of {BURST}", repeats * len(field)) as tick, ThreadPoolExecutor(BURST) as crowd:
        for _ in range(repeats):
            for name, _, once in field:
                server.settle()
                try:
                    wall, each = _together(crowd, once)
                except Exception as error:
                    errors[name] = f"{type(error).__name__}: {error}"[:300]
                else:
                    walls[name].append(wall)
                    singles[name] += each
                tick()

    def rows(of: dict[str, list[float]]) -> tuple[Row, ...]:
        return tuple(
            Row(name, kind, () if name in errors else tuple(of[name]), errors.get(name, ""))
            for name, kind, _ in field
        )

    return [
        Section(
            "burst",
            f"Burst of {BURST}: until all have run their first command",
            "ms",
            SUBJECT,
            rows(walls),
            notes=(
                "All are asked for at the same moment by threads of one Python process; the pool held 2.",
            ),
        ),
        Section("burst-each", f"Burst of {BURST}: each one's wait", "ms", SUBJECT, rows(singles)),
    ]


def _together(crowd: ThreadPoolExecutor, once: Callable[[], float]) -> tuple[float, list[float]]:
    """All at once: the time until the last is ready, and everybody's own."""
    started = time.perf_counter()
    ends: list[float] = []

    def one(_: int) -> float:
        spent = once()
        ends.append(elapsed(started))
        return spent

    each = list(crowd.map(one, range(BURST)))
    return max(ends), each
