"""Executors as processes of their own, which tests kill, stop and look at.

An attempt does the next act of its run's script: ``step``; ``hold``, until the test opens the gate; ``rest``,
until it is nudged; ``linger``, which is both; ``mind``, which hears what the run was told, and is done again
and again; ``raise``. Which one is next stands in a table of ours that all
executors share: how many attempts have ended. So one that was interrupted is told from one that ended and was
made again.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import multiprocessing
import os
import random
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import dbos._dbos as internals

from wardian.model.errors import WardianError
from wardian.runs.engine import Rest
from wardian.runs.engines import dbos_engine, workflows
from wardian.runs.engines.journals import Journal

PATIENCE_S = 60.0

Journals = Callable[[str], Journal]
"""The journal of an executor of that name; they share a database."""

Start = Callable[..., "Executor"]
"""``start(name, journal, opened=True, version=None, die_at=None)``; what is left is killed after the test."""

DEATHS = {
    "before it rests": ("put_aside", False),
    "when it rests": ("put_aside", True),
    "before it is woken": ("take_up", False),
    "when it is recorded as woken": ("execute_dequeued_workflow", False),
}
"""Where an executor may die: before or after which call that the engine makes."""


@dataclass(frozen=True)
class Tables:
    """What runs are, outside of any engine."""

    path: Path

    @contextlib.contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        with contextlib.closing(sqlite3.connect(self.path, timeout=30, isolation_level=None)) as database:
            database.execute("PRAGMA journal_mode=WAL")
            database.execute("CREATE TABLE IF NOT EXISTS script (run TEXT PRIMARY KEY, acts TEXT)")
            database.execute(
                "CREATE TABLE IF NOT EXISTS attempt (run TEXT, act TEXT, by TEXT, ended INTEGER)"
            )
            database.execute("CREATE TABLE IF NOT EXISTS word (run TEXT, heard INTEGER)")
            yield database

    def say(self, run: str) -> None:
        with self._open() as database:
            database.execute("INSERT INTO word VALUES (?, 0)", (run,))

    def hear(self, run: str) -> None:
        with self._open() as database:
            database.execute("UPDATE word SET heard = 1 WHERE run = ?", (run,))

    def unheard(self) -> int:
        with self._open() as database:
            (count,) = database.execute("SELECT count(*) FROM word WHERE heard = 0").fetchone()
            return int(count)

    def write(self, run: str, *acts: str) -> str:
        with self._open() as database:
            database.execute("INSERT OR REPLACE INTO script VALUES (?, ?)", (run, json.dumps(acts)))
        return run

    def start(self, run: str, by: str) -> tuple[int, str]:
        """A number for the attempt, and its act; an empty one when there is nothing left to do."""
        with self._open() as database:
            (acts,) = database.execute("SELECT acts FROM script WHERE run = ?", (run,)).fetchone()
            (done,) = database.execute("SELECT count(ended) FROM attempt WHERE run = ?", (run,)).fetchone()
            act = "mind" if "mind" in acts else dict(enumerate(json.loads(acts))).get(done, "")
            row = database.execute("INSERT INTO attempt VALUES (?, ?, ?, NULL)", (run, act, by)).lastrowid
            assert row is not None
            return row, act

    def end(self, attempt: int) -> None:
        with self._open() as database:
            database.execute("UPDATE attempt SET ended = 1 WHERE rowid = ?", (attempt,))

    def attempts(self, run: str) -> list[tuple[str, str, bool]]:
        """Every attempt at it: the act, who made it, and whether it ended."""
        with self._open() as database:
            rows = database.execute("SELECT act, by, ended FROM attempt WHERE run = ? ORDER BY rowid", (run,))
            return [(act, by, bool(ended)) for act, by, ended in rows]

    def acts(self, run: str) -> list[str]:
        return [act for act, _, _ in self.attempts(run)]


class Executor:
    """A process with an engine, as the test has it. ``version`` is the engine's; ``die_at`` one of
    :data:`DEATHS`."""

    def __init__(
        self,
        name: str,
        journal: Journal,
        tables: Tables,
        *,
        version: str | None = None,
        die_at: str | None = None,
    ) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])
        self._here, there = context.Pipe()
        self.process = context.Process(target=_main, args=(there, name, journal, tables, version, die_at))
        self.process.start()
        there.close()
        self.told: list[tuple[str, ...]] = []

    def until(self, *event: str) -> None:
        """Until it has told of an event that begins like this."""
        if not any(told[: len(event)] == event for told in self.told):
            self._next(event)

    def ask(self, verb: str, *arguments: Any) -> str:
        """The code of the error that it was answered with, or nothing."""
        self.send(verb, *arguments)
        return self.answer(verb)

    def send(self, verb: str, *arguments: Any) -> None:
        self._here.send((verb, *arguments))

    def answer(self, verb: str) -> str:
        return self._next(("answer", verb))[2]

    def census(self) -> tuple[str, ...]:
        """How many workflows DBOS has in the process, and how many tasks there are."""
        self.do("census")
        return next(told for told in reversed(self.told) if told[0] == "census")

    def _next(self, event: tuple[str, ...]) -> tuple[str, ...]:
        deadline = time.monotonic() + PATIENCE_S
        while self._here.poll(max(0.0, deadline - time.monotonic())):
            heard: tuple[str, ...] = self._here.recv()
            self.told.append(heard)
            if heard[: len(event)] == event:
                return heard
        raise AssertionError(f"no {event} in {PATIENCE_S} s; heard: {self.told}")

    def do(self, verb: str, *arguments: Any) -> None:
        assert self.ask(verb, *arguments) == ""

    def signal(self, number: int) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, number)

    def kill(self) -> None:
        self.process.kill()
        self.process.join()
        self._here.close()

    def end(self) -> None:
        """Ask it to close and to exit, in an orderly way."""
        self.do("close")
        self._here.close()
        self.process.join(30)
        assert self.process.exitcode == 0


def _main(
    there: Connection, name: str, journal: Journal, tables: Tables, version: str | None, die_at: str | None
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    dbos_engine.BEGIN_S = 1.0
    if version is not None:
        dbos_engine.VERSION = version
    if die_at is not None:
        call, after = DEATHS[die_at]
        setattr(workflows, call, _deadly(getattr(workflows, call), after=after))
    asyncio.run(_Played(there, name, journal, tables).serve())


def _deadly(call: Callable[..., Any], *, after: bool) -> Callable[..., Any]:
    def deadly(*arguments: Any, **options: Any) -> Any:
        if after:
            call(*arguments, **options)
        os.kill(os.getpid(), signal.SIGKILL)

    return deadly


class _Played:
    def __init__(self, there: Connection, name: str, journal: Journal, tables: Tables) -> None:
        self._there, self._name, self._tables = there, name, tables
        self._gate = asyncio.Event()
        self._engine = dbos_engine.DbosEngine(self._attempt, journal, lost=lambda: self._tell("lost"))

    def _tell(self, *event: str) -> None:
        with contextlib.suppress(BrokenPipeError):
            self._there.send(event)

    async def serve(self) -> None:
        while True:
            try:
                verb, *arguments = await asyncio.to_thread(self._there.recv)
            except (EOFError, OSError):
                return
            try:
                await self._do(verb, arguments)
            except WardianError as error:
                self._tell("answer", verb, error.code)
            else:
                self._tell("answer", verb, "")

    async def _do(self, verb: str, arguments: list[Any]) -> None:
        if verb == "release":
            self._gate.set()
        elif verb == "nudge":
            self._engine.nudge(*arguments)
        elif verb == "forget":
            self._tell("forgot", str(await self._engine.forget(*arguments)))
        elif verb == "begin at once":
            await asyncio.gather(*(self._engine.begin(*arguments) for _ in range(3)))
        elif verb == "chatter":
            await self._chatter(*arguments)
        elif verb == "census":
            active = internals._get_dbos_instance()._active_workflows_set.activeList()
            self._tell("census", str(len(active)), str(len(asyncio.all_tasks())))
        else:
            await getattr(self._engine, verb)(*arguments)

    async def _chatter(self, runs: list[str], count: int) -> None:
        """Say something when a run may be at any instant of an attempt, or between two, until it is heard."""
        for _ in range(count):
            for _ in range(2):
                for run in runs:
                    self._tables.say(run)
                    self._engine.nudge(run)
                await asyncio.sleep(random.random() / 50)
            while self._tables.unheard():  # noqa: ASYNC110 - which another process may change
                await asyncio.sleep(0.005)

    async def _attempt(self, run: str) -> Rest:
        number, act = self._tables.start(run, self._name)
        self._tell("began", run, act)
        try:
            if act == "mind":
                await asyncio.sleep(random.random() / 200)
                self._tables.hear(run)
            elif act in ("hold", "linger"):
                await self._gate.wait()
        except asyncio.CancelledError:
            self._tell("cancelled", run, act)
            raise
        self._tables.end(number)
        if not act:
            self._tell("over", run)
            return Rest(over=True)
        self._tell("ended", run, act)
        if act == "raise":
            raise ValueError("this attempt fails")
        return Rest(over=False, until=None if act in ("rest", "linger", "mind") else 0)
