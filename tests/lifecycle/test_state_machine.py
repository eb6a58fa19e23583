"""Sequences nobody thought of: the lifecycle against a model, with crashes, lost machines and failing parts.

The machines are made of memory (``fakes.py``), everything above them is real: database, snapshots, logs,
owners, pool, reconciler. After every step what the house says must be what the model says.
"""

from __future__ import annotations

import asyncio
import itertools
import shutil
import tempfile
from collections.abc import Coroutine
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from sqlalchemy import create_engine
from tests.lifecycle.fakes import ROOT, SMALL, MemoryDriver, World
from tests.lifecycle.house import TENANT, House

from wardian.model.errors import WardianError
from wardian.model.sandbox import EndReason, OnTimeout, Sandbox, SandboxSpec, State
from wardian.sandboxes.pool import Bounds, PoolLimits
from wardian.sandboxes.service import ListQuery
from wardian.sandboxes.workshop import Options
from wardian.store import intents, intervals, sandboxes, snapshots
from wardian.store.migrations import migrate

T = TypeVar("T")
PICK = st.integers(min_value=0, max_value=9)
LIMITS = PoolLimits(created=Bounds(1, 1), hot=Bounds(1, 2), concurrency=2)


@dataclass
class Expected:
    """What the model knows of one sandbox."""

    paused: bool
    counter: int
    auto_resume: bool
    epoch: int
    boots: bool = False  # paused with its files alone


@cache
def _migrated() -> bytes:
    """A database file with its tables, made once: migrating each time would take longer than the test."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "empty.db"
        engine = create_engine(f"sqlite:///{path}")
        migrate(engine)
        engine.dispose()
        return path.read_bytes()


class Lifecycle(RuleBasedStateMachine):
    """Rules are verbs and mishaps. ``self.known`` is the model."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.data = Path(tempfile.mkdtemp(prefix="wardian-lifecycle-"))
        (self.data / "wardian.db").write_bytes(_migrated())
        self.world = World()
        self.known: dict[str, Expected] = {}
        self.ended: set[str] = set()
        self.kept: set[str] = set()
        self.boots: dict[str, str] = {}  # the boot id at the last pause

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(work)

    def refuses(self, code: str, work: Coroutine[Any, Any, object]) -> None:
        with pytest.raises(WardianError) as refused:
            self.run(work)
        assert refused.value.code == code

    @initialize()
    def open(self) -> None:
        options = Options(idle_grace_s=0, pause_retry_s=3600)
        self.house = self.run(
            House.open(
                self.data, MemoryDriver(self.world), ROOT, resources=SMALL, limits=LIMITS, options=options
            )
        )

    def pick(self, number: int, *, paused: bool | None = None) -> str | None:
        ids = [key for key, e in self.known.items() if paused is None or e.paused is paused]
        return ids[number % len(ids)] if ids else None

    def body(self, sandbox_id: str) -> Any:
        owner = self.house.sandboxes.roster.owners[sandbox_id]
        return self.world.bodies[str(owner.sandbox.machine_id)]

    # -- verbs

    @rule(auto_resume=st.booleans(), pause_at_timeout=st.booleans(), counter=PICK)
    def create(self, auto_resume: bool, pause_at_timeout: bool, counter: int) -> None:
        if len(self.known) >= 6:
            return
        on_timeout = OnTimeout.PAUSE if pause_at_timeout else OnTimeout.KILL
        spec = SandboxSpec(auto_resume=auto_resume, on_timeout=on_timeout, metadata={"n": str(counter)})
        sandbox = self.run(self.house.sandboxes.create(TENANT, spec))
        self.body(sandbox.id).inside.counter = counter
        self.known[sandbox.id] = Expected(False, counter, auto_resume, 1)

    @rule(number=PICK)
    def use(self, number: int) -> None:
        """Count one up, as a program inside would, through the guest."""
        if (sandbox_id := self.pick(number)) is None:
            return
        expected = self.known[sandbox_id]

        async def count() -> None:
            async with self.house.sandboxes.guest(sandbox_id) as guest:
                await guest.stats()
                self.body(sandbox_id).inside.counter += 1

        if expected.paused and (expected.boots or not expected.auto_resume):
            self.refuses("sandbox_not_found", count())
            return
        self.run(count())
        if expected.paused:
            expected.paused, expected.epoch = False, expected.epoch + 1
        expected.counter += 1

    @rule(number=PICK, memory=st.booleans())
    def pause(self, number: int, memory: bool) -> None:
        if (sandbox_id := self.pick(number)) is None:
            return
        expected = self.known[sandbox_id]
        pausing = self.house.sandboxes.pause(TENANT, sandbox_id, memory=memory)
        if expected.paused:
            self.refuses("already_paused", pausing)
        else:
            self.boots[sandbox_id] = self.body(sandbox_id).inside.boot_id
            self.run(pausing)
            expected.paused, expected.boots = True, not memory

    @rule(number=PICK, memory=st.booleans())
    def fail_to_pause(self, number: int, memory: bool) -> None:
        if (sandbox_id := self.pick(number, paused=False)) is None:
            return
        self.world.faults.capture = 1
        pausing = self.house.sandboxes.pause(TENANT, sandbox_id, memory=memory)
        self.refuses("capture_failed" if memory else "no_space", pausing)

    @rule(number=PICK, memory=st.booleans())
    def resume(self, number: int, memory: bool) -> None:
        if (sandbox_id := self.pick(number)) is None:
            return
        expected = self.known[sandbox_id]
        before = self.boots.get(sandbox_id)
        connecting = self.house.sandboxes.connect(TENANT, sandbox_id, 300, memory=memory)
        _, resumed = self.run(connecting)
        assert resumed is expected.paused
        if resumed and before is not None:
            same = self.body(sandbox_id).inside.boot_id == before
            assert same is (memory and not expected.boots)
        self.boots.pop(sandbox_id, None)
        expected.epoch += resumed
        expected.paused = expected.boots = False

    @rule(number=PICK)
    def fail_to_resume(self, number: int) -> None:
        if (sandbox_id := self.pick(number, paused=True)) is None:
            return
        if self.known[sandbox_id].boots:
            return  # nothing is restored
        self.world.faults.restore = 1
        self.refuses("image_refused", self.house.sandboxes.resume(TENANT, sandbox_id, 300))

    @rule(number=PICK, count=st.integers(min_value=1, max_value=3), failing=st.booleans())
    def fork(self, number: int, count: int, failing: bool) -> None:
        sandbox_id = self.pick(number, paused=False)
        if sandbox_id is None or len(self.known) + count > 8:
            return
        self.world.faults.restore = int(failing)
        outcomes = self.run(self.house.sandboxes.fork(TENANT, sandbox_id, count=count, timeout_s=300))
        assert sum(isinstance(outcome, WardianError) for outcome in outcomes) == failing
        parent = self.known[sandbox_id]
        for outcome in outcomes:
            if isinstance(outcome, Sandbox):
                assert self.body(outcome.id).inside.hostname == outcome.id
                self.known[outcome.id] = Expected(False, parent.counter, parent.auto_resume, parent.epoch + 1)

    @rule(number=PICK, memory=st.booleans())
    def snapshot_and_create(self, number: int, memory: bool) -> None:
        sandbox_id = self.pick(number, paused=False)
        if sandbox_id is None or len(self.known) >= 8:
            return
        kept = self.run(self.house.sandboxes.snapshot(TENANT, sandbox_id, name=None, memory=memory))
        made = self.run(self.house.sandboxes.create(TENANT, SandboxSpec(template=kept.id)))
        self.known[made.id] = Expected(False, self.known[sandbox_id].counter, False, 1)
        self.kept.add(kept.id)

    @rule(number=PICK)
    def kill(self, number: int) -> None:
        if (sandbox_id := self.pick(number)) is None:
            return
        self.run(self.house.sandboxes.kill(TENANT, sandbox_id))
        self.gone(sandbox_id)

    def gone(self, sandbox_id: str) -> None:
        del self.known[sandbox_id]
        self.ended.add(sandbox_id)

    @rule(number=PICK)
    def expire(self, number: int) -> None:
        if (sandbox_id := self.pick(number, paused=False)) is None:
            return

        async def time_is_up() -> Sandbox:
            await self.house.sandboxes.set_timeout(TENANT, sandbox_id, 0)
            return await self.house.sandboxes.until(sandbox_id, State.PAUSED, State.ENDED)

        sandbox = self.run(time_is_up())
        if sandbox.spec.on_timeout is OnTimeout.PAUSE:
            self.known[sandbox_id].paused = True
        else:
            assert sandbox.end_reason is EndReason.EXPIRED
            self.gone(sandbox_id)

    @rule(number=PICK)
    def settle_idle(self, number: int) -> None:
        """Left alone, a sandbox without processes is frozen."""
        if (sandbox_id := self.pick(number, paused=False)) is None:
            return

        async def frozen() -> None:
            self.house.sandboxes.roster.owners[sandbox_id].consider_idle()
            await self.house.sandboxes.until(sandbox_id, State.FROZEN)

        self.run(frozen())
        assert self.body(sandbox_id).frozen

    # -- mishaps

    @rule(number=PICK, reason=st.sampled_from(["crashed", "out_of_memory"]))
    def lose_a_machine(self, number: int, reason: str) -> None:
        if (sandbox_id := self.pick(number, paused=False)) is None:
            return

        async def lost() -> EndReason | None:
            self.body(sandbox_id).end(reason)
            return (await self.house.sandboxes.until(sandbox_id, State.ENDED)).end_reason

        ended = self.run(lost())
        assert ended is (EndReason.OUT_OF_MEMORY if reason == "out_of_memory" else EndReason.MACHINE_LOST)
        self.gone(sandbox_id)

    @rule(reboot=st.booleans(), orderly=st.booleans())
    def restart(self, reboot: bool, orderly: bool) -> None:
        """The server goes, in order or not, perhaps with the whole host; another one starts."""
        self.run(self.house.close() if orderly else self.house.crash())
        if reboot:

            async def off() -> None:
                self.world.clear()

            self.run(off())
            for sandbox_id in [key for key, expected in self.known.items() if not expected.paused]:
                self.gone(sandbox_id)
        self.open()

    # -- what always holds

    @invariant()
    def the_house_agrees_with_the_model(self) -> None:
        if not hasattr(self, "house"):
            return
        page = self.run(self.house.sandboxes.list(TENANT, ListQuery()))
        assert {s.id for s in page.items} == set(self.known)
        for sandbox in page.items:
            expected = self.known[sandbox.id]
            assert (sandbox.public_state == "paused") is expected.paused
            assert sandbox.epoch == expected.epoch
            if not expected.paused:
                assert self.body(sandbox.id).inside.counter == expected.counter
                assert self.body(sandbox.id).inside.hostname == sandbox.id

    @invariant()
    def the_books_are_in_order(self) -> None:
        if not hasattr(self, "house"):
            return
        read = self.house.works.database.read
        assert self.run(read(intents.open_ones)) == []
        open_meters = self.run(read(intervals.opened_at))
        assert set(open_meters) == set(self.known)
        paused = {key for key, expected in self.known.items() if expected.paused}
        rows = self.run(read(snapshots.all_ids))
        assert len(rows) == len(paused) + len(self.kept)
        on_disk = {p.name for p in (self.data / "snapshots").iterdir()} - {".scratch"}
        assert on_disk == rows
        assert list((self.data / "snapshots/.scratch").iterdir()) == []

    def teardown(self) -> None:
        if hasattr(self, "house"):
            while self.known:
                self.kill(0)
            self.run(self._check_the_end())
            self.run(self.house.close())
            assert self.world.bodies == {}
        self.runner.close()
        shutil.rmtree(self.data)

    async def _check_the_end(self) -> None:
        """Every life is covered by its intervals exactly, and its log is whole."""
        read = self.house.works.database.read
        for sandbox_id in self.ended:
            sandbox = await read(partial(sandboxes.find, tenant=TENANT, sandbox_id=sandbox_id))
            assert sandbox is not None
            pieces = await read(partial(intervals.of_sandbox, sandbox_id=sandbox_id))
            edges = [sandbox.created_at, *itertools.chain(*((p.opened_at, p.closed_at) for p in pieces))]
            edges.append(sandbox.ended_at)
            assert edges[::2] == edges[1::2]
            log = self.house.works.recorder.log(sandbox_id)
            assert log.verify() == len(log.read(limit=100_000))
            log.release()


Lifecycle.TestCase.settings = settings(
    max_examples=15,
    stateful_step_count=20,
    deadline=None,
    derandomize=True,  # exploring is done by hand, with many more examples: a suite must not be a lottery
    suppress_health_check=[HealthCheck.too_slow],
)
TestLifecycle = Lifecycle.TestCase
