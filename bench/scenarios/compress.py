"""Compressed snapshots: what they take on disk, how fast they are made, and what a restore from one costs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bench.island import Islands
from bench.lab import GVISOR, MICROVM, Lab
from bench.measure import Contender, Kind, Row, Section, take_turns
from bench.peers import BASH
from wardian.isolation.port import MachineImage
from wardian.snapshots.store import SnapshotStore

NAMES = {GVISOR: "Wardian, gVisor", MICROVM: "Wardian, microVM"}
WORK = (
    "tar -C /usr/lib -cf /tmp/code.tar python3; head -c 4000000 /dev/urandom > /tmp/noise; "
    "python3 -c 'import json, time; kept = [json.dumps(list(range(n))) for n in range(2000)]; time.sleep(99)'"
    " >/dev/null 2>&1 & sleep 2"
)
"""Programs, words and noise, in files and in memory."""
ID = "s1"


@dataclass(frozen=True, slots=True)
class _Kept:
    """The snapshot of one machine that has done something."""

    islands: Islands
    root: Path
    store: SnapshotStore

    def compress(self) -> float:
        """Seconds for what is plain now."""
        self.islands.act(self.store.load(ID))
        for packed in (self.root / ID).glob("*.zst"):
            packed.unlink()
        started = time.perf_counter()
        self.islands.act(self.store.compress(ID, unused_s=0))
        return time.perf_counter() - started

    @property
    def megabytes(self) -> float:
        return self.islands.act(self.store.stored_bytes(ID)) / 1e6

    def restore(self, *, compressed: bool = False, restarted: bool = False) -> float:
        """Milliseconds to the agent's answer in a machine that waited."""
        self.islands.act(self.store.load(ID))
        if compressed:
            self.islands.act(self.store.compress(ID, unused_s=0))
        store = SnapshotStore(self.root) if restarted else self.store
        started = time.perf_counter()
        image = self.islands.act(store.load(ID))[1]
        loaded = 1000 * (time.perf_counter() - started)
        if restarted:
            self.islands.act(store.close())
        return loaded + self.islands.restore(image)


def run(lab: Lab) -> Sequence[Section]:
    rounds = lab.rounds(quick=3, full=10)
    with _snapshots(lab) as kept:
        return [*_sizes(lab, kept, rounds), _restore(lab, kept, rounds)]


@contextmanager
def _snapshots(lab: Lab) -> Iterator[Mapping[str, _Kept]]:
    found = {}
    for kind in NAMES:
        islands, root = lab.islands(kind), lab.scratch / f"snapshots-{kind}"
        store = SnapshotStore(root)
        islands.act(store.open())
        with islands.inhabited() as here:
            islands.output(here, *BASH, WORK)
            image, _ = islands.captured(here)
        islands.act(_publish(store, image))
        found[kind] = _Kept(islands, root, store)
    yield found
    for each in found.values():
        each.islands.act(each.store.close())


async def _publish(store: SnapshotStore, image: MachineImage) -> None:
    await store.publish(ID, image, parent=None, created_at=1, facts={})


def _sizes(lab: Lab, kept: Mapping[str, _Kept], rounds: int) -> Sequence[Section]:
    sizes, speeds = [], []
    with lab.progress("compress", rounds * len(kept)) as tick:
        for kind, each in kept.items():
            plain = each.megabytes
            spent = []
            for _ in range(rounds):
                spent.append(plain / each.compress())
                tick()
            sizes.append(Row(f"{NAMES[kind]}, plain", Kind.WARDIAN, (plain,)))
            sizes.append(Row(f"{NAMES[kind]}, compressed", Kind.WARDIAN, (each.megabytes,)))
            speeds.append(Row(NAMES[kind], Kind.WARDIAN, tuple(spent)))
    subject = NAMES[GVISOR]
    note = (
        "A process of the lowest priority; of what is plain on disk, its start and the reading back included."
    )
    return [
        Section("compress-size", "A snapshot on disk", "MB", f"{subject}, plain", tuple(sizes)),
        Section("compress", "Compressing", "MB/s", subject, tuple(speeds), notes=(note,), higher=True),
    ]


def _restore(lab: Lab, kept: Mapping[str, _Kept], rounds: int) -> Section:
    field = []
    for kind, each in kept.items():
        acts: Mapping[str, Callable[[], float]] = {
            "plain": each.restore,
            "plain, the first since the server's start": partial(each.restore, restarted=True),
            "compressed": partial(each.restore, compressed=True),
        }
        field += [Contender(f"{NAMES[kind]}, {name}", act, Kind.WARDIAN) for name, act in acts.items()]
    with lab.progress("compress: restore", rounds + 1) as tick:
        rows = take_turns(field, rounds=rounds, tick=tick)
    title = "Restore of a snapshot to the first reply"
    return Section("compress-restore", title, "ms", field[0].name, rows)
