"""What a sandbox costs that does nothing: memory (PSS, cgroup) and processor time."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path

import psutil

from bench.lab import Lab, Pools
from bench.measure import Goal, Kind, Row, Section
from bench.peers import Oci, Peers

TICKS = os.sysconf("SC_CLK_TCK")
MEGABYTE = 1 << 20
CROWD = 10  # of each peer


def run(lab: Lab) -> Sequence[Section]:
    counts = (1, 50) if lab.quick else (1, 50, 200)
    window_s = 4.0 if lab.quick else 15.0
    memory: list[Row] = []
    groups: list[Row] = []
    busy: list[Row] = []
    with lab.progress("idle", 2 * len(counts) + 2) as tick:
        with ExitStack() as stack:
            server = lab.server(Pools(hot=1))
            made = 0
            for count in counts:
                while made < count:
                    sandbox = server.endpoint.create()
                    sandbox.commands.run("true")
                    stack.callback(sandbox.kill)
                    made += 1
                tick()
                server.settle(idle=True)
                machines = server.machines()
                pids = [pid for machine in machines.values() for pid in machine]
                name = f"Wardian × {count}"
                memory.append(_row(name, Kind.WARDIAN, [pss_of(pids) / len(machines)]))
                groups.append(_row(name, Kind.WARDIAN, [_charged(machine) for machine in machines.values()]))
                busy.append(_row(name, Kind.WARDIAN, [cpu_of(pids, window_s) / len(machines)]))
                tick()
        for name, crowd in _crowds(lab.peers()).items():
            title = f"{name} × {CROWD}"
            try:
                with crowd() as pids:
                    memory.append(_row(title, Kind.PEER, [pss_of(pids) / CROWD]))
                    busy.append(_row(title, Kind.PEER, [cpu_of(pids, window_s) / CROWD]))
            except Exception as error:  # a peer that does not work here must not end the run
                memory.append(Row(title, Kind.PEER, (), f"{type(error).__name__}: {error}"[:300]))
        tick()
    most = f"Wardian × {counts[-1]}"
    peers_note = (
        "Peers run `sleep infinity` in the same image; every peer is a machine or container of its own."
    )
    return [
        Section(
            "idle-pss",
            "Idle memory: proportional share of all processes",
            "MB each",
            most,
            tuple(memory),
            notes=(peers_note,),
            goals=(
                Goal(
                    f"memory of each of {counts[-1]} idle sandboxes (PSS)",
                    10,
                    memory[len(counts) - 1].median,
                    "MB",
                ),
            ),
        ),
        Section(
            "idle-cgroup",
            "Idle memory: charged to the cgroup, file cache included",
            "MB each",
            most,
            tuple(groups),
        ),
        Section(
            "idle-cpu",
            f"Idle processor time over {window_s:g} s",
            "% of a core each",
            most,
            tuple(busy),
            goals=(
                Goal(
                    f"processor time of each of {counts[-1]} idle sandboxes",
                    0.05,
                    busy[len(counts) - 1].median,
                    "%",
                ),
            ),
        ),
    ]


def _row(name: str, kind: Kind, samples: Iterable[float]) -> Row:
    return Row(name, kind, tuple(samples))


def _crowds(peers: Peers) -> Mapping[str, Callable[[], AbstractContextManager[list[int]]]]:
    """For each peer how to have ``CROWD`` idle ones, as a context that yields all their processes."""

    @contextmanager
    def containers(runtime: Oci) -> Iterator[list[int]]:
        with ExitStack() as stack:
            names = [stack.enter_context(runtime.idle()) for _ in range(CROWD)]
            yield _families(runtime.pid(name) for name in names)

    @contextmanager
    def bubbles() -> Iterator[list[int]]:
        with ExitStack() as stack:
            yield _families([stack.enter_context(peers.bwrap_idle()) for _ in range(CROWD)])

    return {
        "runsc": lambda: containers(peers.runsc),
        "crun": lambda: containers(peers.crun),
        "bubblewrap": bubbles,
    }


def _families(roots: Iterable[int]) -> list[int]:
    found = []
    for root in roots:
        found += [root, *(child.pid for child in psutil.Process(root).children(recursive=True))]
    return found


def pss_of(pids: Iterable[int]) -> float:
    """Megabytes: pages that k processes share count 1/k for each, so sums are right."""
    total = 0
    for pid in pids:
        with suppress(FileNotFoundError, ProcessLookupError):
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1])
    return total / 1024


def cpu_of(pids: Sequence[int], window_s: float) -> float:
    """Per cent of one core that they all use together."""
    before = _ticks(pids)
    started = time.monotonic()
    time.sleep(window_s)
    after = _ticks(pids)
    used = sum(after[pid] - before[pid] for pid in after.keys() & before.keys())
    return 100 * used / TICKS / (time.monotonic() - started)


def _ticks(pids: Iterable[int]) -> Mapping[int, int]:
    """What each process has used so far; one that is gone is left out."""
    found = {}
    for pid in pids:
        with suppress(FileNotFoundError, ProcessLookupError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            found[pid] = int(fields[11]) + int(fields[12])
    return found


def _charged(pids: Sequence[int]) -> float:
    """Megabytes charged to the cgroup of these processes."""
    for line in Path(f"/proc/{pids[0]}/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            return int(Path(f"/sys/fs/cgroup/memory{path}/memory.usage_in_bytes").read_text()) / MEGABYTE
        if not controllers and Path(f"/sys/fs/cgroup{path}/memory.current").exists():
            return int(Path(f"/sys/fs/cgroup{path}/memory.current").read_text()) / MEGABYTE
    raise RuntimeError("no memory cgroup")
