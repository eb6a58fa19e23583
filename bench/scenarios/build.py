"""A template built from a step that makes a thousand files: anew, and out of the cache."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path

from e2b import Template

from bench.clients import Endpoint, elapsed
from bench.lab import Lab, Pools
from bench.measure import Contender, Kind, Section, take_turns
from bench.peers import Peers, changing
from bench.peers import run as run_command

SUBJECT = "Wardian, cold"
STEP = "mkdir /opt/made && cd /opt/made && for i in $(seq 1000); do echo $i > $i; done"

_numbers = count()


def run(lab: Lab) -> Sequence[Section]:
    rounds = lab.rounds(quick=3, full=15)
    endpoint = lab.server(Pools(hot=2)).endpoint
    field = [
        Contender(SUBJECT, lambda: _build(endpoint, f"{STEP}; : {next(_numbers)}"), Kind.WARDIAN),
        Contender("Wardian, cached", lambda: _build(endpoint, STEP), Kind.WARDIAN),
        Contender("cp, runsc run, mkfs.erofs", _by_hand(lab.peers(), lab.scratch / "by-hand")),
    ]
    with lab.progress("template build", rounds + 1) as tick:
        rows = take_turns(field, rounds=rounds, tick=tick)
    notes = (
        "The SDK's Template.build, from `base`, to the end of its log. Cached: the step was built before.",
        "By hand: copy the unpacked base, run the step in it, make an image: no cache, no digests, no log.",
    )
    return [Section("build", "Template build: one step, 1,000 files", "ms", SUBJECT, rows, notes=notes)]


def _build(endpoint: Endpoint, step: str) -> float:
    template = Template().from_template("base").run_cmd(step, user="root")
    started = time.perf_counter()
    Template.build(template, "bench", api_key=endpoint.key, api_url=endpoint.url)
    return elapsed(started)


def _by_hand(peers: Peers, place: Path) -> Callable[[], float]:
    tree = place / "tree"
    bundle = changing(place / "bundle", peers.root, tree, ("/bin/bash", "-c", STEP))

    def once() -> float:
        started = time.perf_counter()
        run_command(("cp", "--archive", str(peers.root.tree), str(tree)))
        peers.runsc.run(bundle)
        run_command(("mkfs.erofs", "--quiet", str(place / "image"), str(tree)))
        spent = elapsed(started)
        shutil.rmtree(tree)
        (place / "image").unlink()
        return spent

    return once
