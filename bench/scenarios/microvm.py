"""Machines with a kernel of their own: boot, capture, clones, exec, memory; beside QEMU driven by hand."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.clients import run_true
from bench.island import Inhabited, Islands
from bench.lab import BY_HAND, GVISOR, MICROVM, Lab, Pools
from bench.measure import Contender, Kind, Row, Section, take_turns
from bench.peers import BASH
from wardian.isolation.port import MachineImage

CLONES = 8
OURS, HAND, OTHER = (
    "Wardian, microVM, driver alone",
    "QEMU by hand, same flags",
    "Wardian, gVisor, driver alone",
)
NOTHING_WAITS = f"{OURS}, nothing waits"
SDK = "Wardian, microVM, SDK"
NAMES = {MICROVM: OURS, BY_HAND: HAND, GVISOR: OTHER}
NOTES = (
    "By hand: no launcher, jail, user or control group, and a new process for every clone. All have the same "
    "base image, kernel and agent; a time ends when that agent has answered.",
)


@dataclass(frozen=True, slots=True)
class _Field:
    """One kind of machine: its islands, one machine that runs, and one image of it."""

    islands: Islands
    here: Inhabited
    image: MachineImage


def run(lab: Lab) -> Sequence[Section]:
    rounds = lab.rounds(quick=3, full=15)
    with _fields(lab) as fields:
        return [
            _boot(lab, rounds, fields),
            _capture(lab, rounds, fields),
            _clones(lab, rounds, fields, 1),
            _clones(lab, rounds, fields, CLONES),
            _exec(lab, 5 * rounds, fields),
            _memory(lab, fields),
        ]


@contextmanager
def _fields(lab: Lab) -> Iterator[Mapping[str, _Field]]:
    with ExitStack() as stack:
        made = {}
        for kind in NAMES:
            islands = lab.islands(kind)
            here = stack.enter_context(islands.inhabited())
            islands.output(here, *BASH, "true")
            image, _ = islands.captured(here)
            stack.callback(islands.remove, image)
            made[kind] = _Field(islands, here, image)
        yield made


def _boot(lab: Lab, rounds: int, fields: Mapping[str, _Field]) -> Section:
    acts = {kind: field.islands.boot for kind, field in fields.items()}
    return _section(lab, "boot", "Boot to the agent's answer", max(2, rounds // 2), acts)


def _capture(lab: Lab, rounds: int, fields: Mapping[str, _Field]) -> Section:
    def act(field: _Field) -> Callable[[], float]:
        def take() -> float:
            image, spent = field.islands.captured(field.here)
            field.islands.remove(image)
            return spent

        return take

    acts = {kind: act(field) for kind, field in fields.items()}
    return _section(lab, "capture", "Capture of a running machine", rounds, acts)


def _clones(lab: Lab, rounds: int, fields: Mapping[str, _Field], count: int) -> Section:
    def act(field: _Field, *, waiting: bool = True) -> Callable[[], float]:
        def take() -> float:
            with field.islands.clones(field.image, count, waiting=waiting) as (_, spent):
                return spent

        return take

    acts = {kind: act(field) for kind, field in fields.items()}
    acts[NOTHING_WAITS] = act(fields[MICROVM], waiting=False)
    if count == 1:
        return _section(lab, "restore", "Restore to the first reply", rounds, acts)
    return _section(lab, "fork", f"{count} clones at once, until the last one's reply", rounds, acts)


def _exec(lab: Lab, rounds: int, fields: Mapping[str, _Field]) -> Section:
    def act(field: _Field) -> Callable[[], float]:
        return lambda: field.islands.execute(field.here, *BASH, "true")

    acts = {kind: act(field) for kind, field in fields.items()}
    acts["chroot (no isolation)"] = lab.peers().native
    endpoint = lab.server(Pools(hot=1, created=1)).endpoint
    sandbox = endpoint.create(headers={"X-Wardian-Isolation": "microvm"}, request_timeout=300)
    try:
        acts[SDK] = lambda: run_true(sandbox)
        return _section(lab, "exec", "Exec of `bash -l -c true`", rounds, acts)
    finally:
        sandbox.kill()


def _section(
    lab: Lab, name: str, title: str, rounds: int, acts: Mapping[str, Callable[[], float]]
) -> Section:
    named = {NAMES.get(kind, kind): act for kind, act in acts.items()}
    field = [
        Contender(shown, act, Kind.WARDIAN if shown.startswith("Wardian") else Kind.PEER)
        for shown, act in named.items()
    ]
    with lab.progress(f"microVM: {name}", rounds + 1) as tick:
        rows = take_turns(field, rounds=rounds, tick=tick)
    return Section(f"microvm-{name}", title, "ms", OURS, rows, notes=NOTES)


def _memory(lab: Lab, fields: Mapping[str, _Field]) -> Section:
    """What clones that have just answered take: resident, and their proportional share of it."""
    rows = []
    with lab.progress("microVM: memory", len(fields)) as tick:
        for kind, field in fields.items():
            with field.islands.clones(field.image, CLONES, waiting=True) as (clones, _):
                told = [_smaps(clone.pid) for clone in clones]
            ours = Kind.PEER if kind == BY_HAND else Kind.WARDIAN
            for key, shown in (("Pss", ""), ("Rss", ", shared pages counted in full")):
                rows.append(Row(f"{NAMES[kind]}{shown}", ours, tuple(each[key] for each in told)))
            tick()
    title = f"Memory of each of {CLONES} clones that have just answered (PSS)"
    note = "Of the one process that holds the guest's memory: QEMU, or gVisor's kernel."
    return Section("microvm-memory", title, "MB", OURS, tuple(rows), notes=(note,))


def _smaps(pid: int) -> Mapping[str, float]:
    """Totals of a process's mappings, in MB."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return {name: int(value) / 1024 for name, value in re.findall(r"(?m)^(\w+):\s+(\d+) kB", text)}
