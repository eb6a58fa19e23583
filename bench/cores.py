"""Which cores a process may use."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def confined(pid: int, cores: Collection[int]) -> Iterator[None]:
    """The process, and what it starts meanwhile, on these cores only."""
    before = os.sched_getaffinity(pid)
    _confine(pid, cores)
    try:
        yield
    finally:
        _confine(pid, before)


def _confine(pid: int, cores: Collection[int]) -> None:
    for thread in Path(f"/proc/{pid}/task").iterdir():
        with suppress(ProcessLookupError):
            os.sched_setaffinity(int(thread.name), cores)
