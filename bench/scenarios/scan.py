"""How fast a snapshot is searched for secrets."""

from __future__ import annotations

import random
import secrets
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from bench.lab import Lab
from bench.measure import Contender, Kind, Section, take_turns
from wardian.snapshots.needles import Needle, forms_of
from wardian.snapshots.scan import FileSource, Limits, scan

MEGABYTES = 256
COUNTS = (10, 100, 1000)
SUBJECT = "Wardian, {} secrets"


def run(lab: Lab) -> Sequence[Section]:
    rounds = lab.rounds(quick=3, full=10)
    memory = lab.scratch / "memory"
    _write(memory)
    one = secrets.token_urlsafe(24).encode()
    field = [Contender(SUBJECT.format(count), _search(memory, count), Kind.WARDIAN) for count in COUNTS]
    field.append(Contender("bytes.find, one secret in every form", _find(memory, one)))
    with lab.progress("scan", rounds) as tick:
        rows = take_turns(field, rounds=rounds, tick=tick, warm_up=1)
    title = f"Search of {MEGABYTES} MB of memory for secrets"
    return [Section("scan", title, "GB/s", SUBJECT.format(COUNTS[1]), rows, higher=True)]


def _write(path: Path) -> None:
    """What memory is made of: code, words and zeros; a part of it has no order at all."""
    code = Path(sys.executable).resolve().read_bytes()
    quarter = (MEGABYTES << 20) // 4
    with path.open("wb") as file:
        file.write((code * (quarter // len(code) + 1))[:quarter])
        file.write((str(sys.modules).encode() * 10_000)[:quarter].ljust(quarter, b"\0"))
        file.write(bytes(quarter))
        file.write(random.Random(1).randbytes(quarter))


def _search(path: Path, count: int) -> Callable[[], float]:
    needles = [Needle(str(number), secrets.token_urlsafe(24).encode()) for number in range(count)]

    def once() -> float:
        started = time.perf_counter()
        with FileSource(path, paged=True) as source:
            report = scan([source], needles, Limits())
        if not report.clean:
            raise RuntimeError(f"found what is not there: {report.hits[0]}")
        return path.stat().st_size / 1e9 / (time.perf_counter() - started)

    return once


def _find(path: Path, value: bytes) -> Callable[[], float]:
    forms = forms_of([Needle("one", value)])

    def once() -> float:
        started = time.perf_counter()
        data = path.read_bytes()
        if any(data.find(form.data) >= 0 for form in forms):
            raise RuntimeError("found what is not there")
        return len(data) / 1e9 / (time.perf_counter() - started)

    return once
