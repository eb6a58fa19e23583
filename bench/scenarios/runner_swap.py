"""A runner put beside a running sandbox, with all that proves it, and what the same comes to by hand."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import cycle
from pathlib import Path

from bench.clients import BareClient, elapsed
from bench.lab import Lab, Pools
from bench.measure import Contender, Goal, Kind, Section, take_turns
from wardian.runners.archive import pack
from wardian.runners.tree import read_directory

SUBJECT = "Wardian, swap"
MODULES = 12
"""Beside the one that starts: a small harness."""

PYTHON = ("python3", "-I", "-S", "-B")
MANIFEST = """
version = "{version}"
language = "python"
start = ["main.py"]
self_test = ["main.py", "--self-test"]
imports = ["harness"]
"""
MAIN = """
import os, sys
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import harness
if __name__ == "__main__":
    sys.exit(harness.check() != {count})
"""
BY_HAND = "mount --bind -o ro {place} /mnt && {python} /mnt/main.py --self-test && umount /mnt"
COPIED = (
    "rm -rf /opt/new && cp -r {place} /opt/new && python3 -m compileall -q /opt/new"
    " && python3 /opt/new/main.py --self-test && rm -rf /opt/runner && mv -T /opt/new /opt/runner"
)


def run(lab: Lab) -> Sequence[Section]:
    rounds = lab.rounds(quick=25, full=200)
    with ExitStack() as stack:
        bare = BareClient(lab.server(Pools(hot=2)).endpoint)
        sandbox = bare.create()
        stack.callback(bare.kill, sandbox)
        releases = cycle([_release(bare, lab.scratch, version) for version in ("1", "2")])
        place = str(lab.scratch / "runner-1")
        _swap(bare, sandbox, next(releases))
        bare.run(sandbox, "/bin/cp", "-rL", "/run/wardian/runner/current", "/opt/staged", user="root")
        inside = BY_HAND.format(place="/opt/staged", python=" ".join(PYTHON))
        copied = COPIED.format(place="/opt/staged")
        field = [
            Contender(SUBJECT, lambda: _swap(bare, sandbox, next(releases)), Kind.WARDIAN),
            Contender(
                "mount and run by hand, inside",
                lambda: bare.run(sandbox, "/bin/sh", "-c", inside, user="root"),
                Kind.WARDIAN,
            ),
            Contender(
                "copied in, compiled, run, moved",
                lambda: bare.run(sandbox, "/bin/sh", "-c", copied, user="root"),
                Kind.WARDIAN,
            ),
            Contender("exec of true", lambda: bare.run(sandbox, "/bin/true"), Kind.WARDIAN),
            Contender("mount and run by hand, no isolation", lambda: _natively(place)),
        ]
        with lab.progress("swap of a runner", rounds + 1) as tick:
            rows = take_turns(field, rounds=rounds, tick=tick)
    section = Section(
        "swap",
        "A runner swapped in a running sandbox",
        "ms",
        SUBJECT,
        rows,
        notes=(
            f"Python, {MODULES + 1} modules. `swap` is one HTTP call: staged, hashed inside, compiled, "
            "imported, self-tested, recorded, switched.",
            "`copied in …` is a swap within the environment, which the other ways leave alone.",
        ),
    )
    row = section.row(SUBJECT)
    goals = (
        ()
        if row is None
        else (
            Goal("swap of a runner, median", 50, row.median, "ms"),
            Goal("swap of a runner, p99", 300, row.p99, "ms"),
        )
    )
    return [replace(section, goals=goals)]


def _release(bare: BareClient, scratch: Path, version: str) -> str:
    """A release of a small harness: its digest."""
    directory = scratch / f"runner-{version}"
    (directory / "harness").mkdir(parents=True)
    names = [f"part{number}" for number in range(MODULES - 1)]
    for name in names:
        body = "\n".join(f"def work{each}(x):\n    return x + {each}\n" for each in range(40))
        (directory / "harness" / f"{name}.py").write_text(f"VERSION = {version!r}\n{body}")
    imported = f"from harness import {', '.join(names)}\n"
    (directory / "harness" / "__init__.py").write_text(imported + f"def check():\n    return {len(names)}\n")
    (directory / "main.py").write_text(MAIN.format(count=len(names)))
    (directory / "runner.toml").write_text(MANIFEST.format(version=version))
    told = bare.post("/wardian/runners?name=bench", pack(read_directory(directory)))
    return str(told["releases"][0]["release"])


def _swap(bare: BareClient, sandbox: Mapping[str, str], release: str) -> float:
    body = json.dumps({"runner": "bench", "release": release}).encode()
    started = time.perf_counter()
    bare.post(f"/wardian/sandboxes/{sandbox['sandboxID']}/runner", body)
    return elapsed(started)


def _natively(place: str) -> float:
    script = f"mount --bind -o ro {place} /mnt && {' '.join(PYTHON)} /mnt/main.py --self-test"
    started = time.perf_counter()
    subprocess.run(("unshare", "-m", "/bin/sh", "-c", script), check=True)
    return elapsed(started)
