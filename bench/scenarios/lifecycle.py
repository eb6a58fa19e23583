"""Pause, resume, fork and restore, against what the runtime underneath can do by itself."""

from __future__ import annotations

import shutil
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from bench.clients import elapsed
from bench.lab import Lab, Pools
from bench.measure import Contender, Goal, Kind, Row, Section, take_turns

RAW_RESTORE = "runsc restore"


def run(lab: Lab) -> Sequence[Section]:
    rounds = lab.rounds(quick=5, full=40)
    with ExitStack() as stack:
        ours = _Ours(lab)
        raw = _Raw(lab, stack)
        island = _Island(lab, stack)
        field = [
            *(Contender(f"{verb}: Wardian (SDK)", ours.taking(verb), Kind.WARDIAN) for verb in ours.VERBS),
            *(Contender(f"{verb}: driver alone", island.taking(verb), Kind.WARDIAN) for verb in island.VERBS),
            *(Contender(f"{verb}: runsc", raw.taking(verb)) for verb in raw.VERBS),
        ]
        with lab.progress("pause, resume, fork", rounds + 1) as tick:
            rows = {row.name: row for row in take_turns(field, rounds=rounds, tick=tick)}
    sections = [
        _section(rows, "pause", "Pause to disk", "checkpoint"),
        _section(rows, "resume", "Resume from disk, to the first command's result", "restore + exec"),
        _section(rows, "restore", "Restore from disk, to the call's return", "restore"),
        _section(rows, "fork", "Fork, to a running clone", "checkpoint + restore"),
        _section(rows, "freeze", "Freeze in memory", "pause"),
        _section(rows, "thaw", "Thaw", "resume"),
    ]
    return [section for section in sections if any(row.samples for row in section.rows)]


def _section(rows: dict[str, Row], verb: str, title: str, theirs: str) -> Section:
    wanted = (
        (f"{verb}: Wardian (SDK)", "Wardian, SDK"),
        (f"{verb}: driver alone", "Wardian, driver alone"),
        (f"{theirs}: runsc", f"runsc {theirs}"),
    )
    mine = tuple(replace(rows[name], name=title) for name, title in wanted if name in rows)
    section = Section(verb, title, "ms", mine[0].name, mine)
    subject, raw = section.row(mine[0].name), section.row(f"runsc {theirs}")
    if verb != "restore" or subject is None or raw is None:
        return section
    goal = Goal("restore against raw `runsc restore`, medians", 1.1, subject.median / raw.median, "×")
    return replace(section, goals=(goal,))


class _Turns(ABC):
    """Verbs that follow from one another are measured in one go and handed out one by one."""

    VERBS: tuple[str, ...] = ()

    def __init__(self) -> None:
        self._measured: dict[str, list[float]] = {verb: [] for verb in self.VERBS}

    def taking(self, verb: str) -> Callable[[], float]:
        def take() -> float:
            if not self._measured[verb]:
                for name, value in self.go().items():
                    self._measured[name].append(value)
            return self._measured[verb].pop(0)

        return take

    @abstractmethod
    def go(self) -> dict[str, float]:
        """Do each verb once; how long it took, in ms."""


class _Ours(_Turns):
    VERBS = ("pause", "resume", "restore", "fork")

    def __init__(self, lab: Lab) -> None:
        super().__init__()
        self._server = lab.server(Pools(hot=1, created=2))

    def go(self) -> dict[str, float]:
        sandbox = self._server.endpoint.create()
        try:
            sandbox.commands.run("true")
            self._server.settle()
            started = time.perf_counter()
            clones = sandbox.fork()
            forked = elapsed(started)
            for clone in clones:
                if isinstance(clone, Exception):
                    raise clone
                clone.kill()
            self._server.settle()
            started = time.perf_counter()
            sandbox.pause()
            paused = elapsed(started)
            self._server.settle()
            started = time.perf_counter()
            sandbox.connect()
            restored = elapsed(started)
            sandbox.commands.run("true")
            resumed = elapsed(started)
        finally:
            sandbox.kill()
        return {"pause": paused, "resume": resumed, "restore": restored, "fork": forked}


class _Raw(_Turns):
    VERBS = ("checkpoint", "restore", "restore + exec", "checkpoint + restore", "pause", "resume")

    def __init__(self, lab: Lab, stack: ExitStack) -> None:
        super().__init__()
        self._runsc = lab.peers().runsc
        self._original = stack.enter_context(self._runsc.idle())
        self._snapshot: Path = lab.scratch / "runsc-snapshot"

    def go(self) -> dict[str, float]:
        shutil.rmtree(self._snapshot, ignore_errors=True)
        checkpoint = self._runsc.checkpoint(self._original, self._snapshot, leave_running=True)
        clone, restore = self._runsc.restored(self._snapshot)
        try:
            execute = self._runsc.exec(clone)
            pause, resume = self._runsc.freeze_and_thaw(clone)
        finally:
            self._runsc.remove(clone)
        return {
            "checkpoint": checkpoint,
            "restore": restore,
            "restore + exec": restore + execute,
            "checkpoint + restore": checkpoint + restore,
            "pause": pause,
            "resume": resume,
        }


class _Island(_Turns):
    VERBS = ("pause", "restore", "fork", "freeze", "thaw")

    def __init__(self, lab: Lab, stack: ExitStack) -> None:
        super().__init__()
        self._islands = lab.islands()
        self._here = stack.enter_context(self._islands.inhabited())

    def go(self) -> dict[str, float]:
        freeze, thaw = self._islands.freeze_and_thaw(self._here)
        image, capture = self._islands.captured(self._here)
        try:
            restore = self._islands.restore(image)
        finally:
            self._islands.remove(image)
        return {
            "pause": capture,
            "restore": restore,
            "fork": capture + restore,
            "freeze": freeze,
            "thaw": thaw,
        }
