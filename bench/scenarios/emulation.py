"""What each wall costs by kind of work: none, gVisor's kernel, a microVM (emulated where no KVM is)."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from bench.lab import GVISOR, MICROVM, Lab
from bench.measure import Contender, Kind, Section, take_turns

WORKS: Mapping[str, str] = {
    "integer": "Integer arithmetic",
    "float": "Floating point",
    "copy": "Copying memory",
    "syscalls": "System calls",
    "files": "Small files: make, write, read, remove",
    "spawn": "Starting /bin/true",
    "python": "Python: start and end",
    "compile": "Python: compile a module of 2,600 lines",
}
"""What ``toil.c`` can do."""
SOURCE = Path(__file__).with_name("toil.c")
INSIDE = "/tmp/toil"
NATIVE, UNDER_GVISOR, IN_A_MICROVM = "native (chroot)", "Wardian, gVisor", "Wardian, microVM"


def run(lab: Lab) -> Sequence[Section]:
    rounds = lab.rounds(quick=3, full=15)
    program = lab.scratch / "toil"
    subprocess.run(["gcc", "-std=gnu11", "-O2", "-static", "-o", str(program), str(SOURCE)], check=True)
    tree = lab.peers().root.tree
    shutil.copy(program, tree / INSIDE[1:])
    with ExitStack() as stack:
        takers: dict[str, Callable[[str], float]] = {NATIVE: lambda work: _native(tree, work)}
        for name, kind in ((UNDER_GVISOR, GVISOR), (IN_A_MICROVM, MICROVM)):
            islands = lab.islands(kind)
            here = stack.enter_context(islands.inhabited())
            islands.put(here, INSIDE, program.read_bytes())
            takers[name] = lambda work, islands=islands, here=here: float(  # type: ignore[misc]
                islands.output(here, INSIDE, work)
            )
        return [_section(lab, rounds, work, takers) for work in WORKS]


def _section(lab: Lab, rounds: int, work: str, takers: Mapping[str, Callable[[str], float]]) -> Section:
    field = [
        Contender(
            name,
            lambda take=take: take(work),  # type: ignore[misc]
            Kind.FLOOR if name == NATIVE else Kind.WARDIAN,
        )
        for name, take in takers.items()
    ]
    with lab.progress(f"work: {work}", rounds + 1) as tick:
        rows = take_turns(field, rounds=rounds, tick=tick)
    note = "The same work everywhere, timed inside; the ratios say how many times as long it takes."
    return Section(f"work-{work}", WORKS[work], "ms", NATIVE, rows, notes=(note,))


def _native(tree: Path, work: str) -> float:
    done = subprocess.run(["chroot", str(tree), INSIDE, work], capture_output=True, text=True, check=True)
    return float(done.stdout)
