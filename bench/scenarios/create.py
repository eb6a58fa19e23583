"""From nothing to the result of a first command."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from bench.clients import BareClient, Endpoint, create_and_run
from bench.lab import Lab, Pools
from bench.measure import Contender, Goal, Kind, Section, take_turns

SUBJECT = "Wardian, hot pool"


def run(lab: Lab) -> Sequence[Section]:
    rounds = lab.rounds(quick=12, full=120)
    hot, created, cold = (lab.server(pools) for pools in (Pools(hot=2), Pools(created=2), Pools()))
    plain = lab.plain()
    bare = BareClient(hot.endpoint)
    peers = lab.peers()

    def ours(server_settle: Callable[[], None], once: Callable[[], float]) -> Callable[[], float]:
        def settled() -> float:
            server_settle()
            return once()

        return settled

    def through_sdk(endpoint: Endpoint) -> Callable[[], float]:
        return lambda: create_and_run(endpoint)

    field = [
        Contender(SUBJECT, ours(hot.settle, through_sdk(hot.endpoint)), Kind.WARDIAN),
        Contender("Wardian, hot pool, bare HTTP", ours(hot.settle, bare.create_and_run), Kind.WARDIAN),
        Contender(
            "Wardian, created pool", ours(created.settle, through_sdk(created.endpoint)), Kind.WARDIAN, 3
        ),
        Contender("Wardian, cold", ours(cold.settle, through_sdk(cold.endpoint)), Kind.WARDIAN, 3),
        Contender("runsc run", peers.runsc.run, every=3),
        Contender("crun run", peers.crun.run),
        Contender("bubblewrap", peers.bwrap),
        Contender("chroot (no isolation)", peers.native),
        Contender("SDK, server does nothing", through_sdk(plain), Kind.FLOOR),
    ]
    with lab.progress("create to first command", rounds + 1) as tick:
        rows = take_turns(field, rounds=rounds, tick=tick)
    section = Section(
        "create",
        "Create to first command",
        "ms",
        SUBJECT,
        rows,
        notes=(
            "Everybody starts the same base image and runs `bash -l -c true`. Pools refill between samples.",
            "Peers set up no cgroup, network, agent or identity, and are started without a server.",
        ),
    )
    return [_with_goals(section)]


def _with_goals(section: Section) -> Section:
    row = section.row(SUBJECT)
    if row is None:
        return section
    goals = (
        Goal("hot create to first command, median", 10, row.median, "ms"),
        Goal("hot create to first command, p99", 50, row.p99, "ms"),
    )
    return replace(section, goals=goals)
