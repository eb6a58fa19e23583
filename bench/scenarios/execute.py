"""``true`` in a sandbox that is already there."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace

from bench.clients import BareClient, run_true
from bench.lab import Lab, Pools
from bench.measure import Contender, Goal, Kind, Section, take_turns
from bench.peers import BASH

SUBJECT = "Wardian, SDK commands.run"
AGENT = "Wardian, agent alone, /bin/true"


def run(lab: Lab) -> Sequence[Section]:
    rounds = lab.rounds(quick=25, full=200)
    with ExitStack() as stack:
        endpoint = lab.server(Pools(hot=2)).endpoint
        sandbox = endpoint.create()
        stack.callback(sandbox.kill)
        empty = lab.plain().create()
        bare = BareClient(endpoint)
        described = bare.create()
        stack.callback(bare.kill, described)
        islands = lab.islands()
        here = stack.enter_context(islands.inhabited())
        peers = lab.peers()
        runsc = stack.enter_context(peers.runsc.idle())
        crun = stack.enter_context(peers.crun.idle())
        field = [
            Contender(SUBJECT, lambda: run_true(sandbox), Kind.WARDIAN),
            Contender("Wardian, bare HTTP", lambda: bare.run_true(described), Kind.WARDIAN),
            Contender(
                "Wardian, agent alone, bash -l -c", lambda: islands.execute(here, *BASH, "true"), Kind.WARDIAN
            ),
            Contender(AGENT, lambda: islands.execute(here, "/bin/true"), Kind.WARDIAN),
            Contender("runsc exec", lambda: peers.runsc.exec(runsc), every=3),
            Contender("crun exec", lambda: peers.crun.exec(crun)),
            Contender("chroot (no isolation)", peers.native),
            Contender("SDK, server does nothing", lambda: run_true(empty), Kind.FLOOR),
        ]
        with lab.progress("exec of true", rounds + 1) as tick:
            rows = take_turns(field, rounds=rounds, tick=tick)
    section = Section(
        "exec",
        "Exec of true in a running sandbox",
        "ms",
        SUBJECT,
        rows,
        notes=(
            "`bash -l -c true` everywhere (that is what the SDK sends), except where /bin/true is named.",
        ),
    )
    goals = tuple(
        Goal(f"exec, {name}, median", 3, row.median, "ms")
        for name in (SUBJECT, AGENT)
        if (row := section.row(name))
    )
    return [replace(section, goals=goals)]
