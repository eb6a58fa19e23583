"""Steps: what a program in a run does once, and the commit that makes it so.

A commit is one transaction: the step's result, the machine that had it, how far the run's log and its ledger
of effects were. It is fenced: a sandbox that the run has left behind commits nothing.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from sqlalchemy import Connection

from wardian.model.agent import Checkpoint
from wardian.model.errors import Conflict, Invalid, NotFound
from wardian.model.run import Box, Run, RunState, Step, StepState
from wardian.model.sandbox import Sandbox, Snapshot
from wardian.runs.works import RunWorks
from wardian.store import boxes, effects, runs, snapshots

KEY_MAX = 255
ANSWER_S = 0.5
"""How long a commit without a capture keeps its asker; whoever asks gives up after two seconds."""

VALUE_MAX = 512 << 10
"""Bytes of JSON of a result. What is bigger belongs into a file: the machine is kept, too."""


class Superseded(Conflict):
    """The run went on in another machine."""

    code = "run_superseded"


class Commits:
    """Of all runs."""

    def __init__(self, works: RunWorks) -> None:
        self._works = works
        self._under_way: dict[tuple[str, int, str], asyncio.Task[Step]] = {}

    async def begin(self, run: Run, sandbox: Sandbox | None, key: str, asked: Any) -> Step:
        """The step of that key: as it was recorded, or begun now. Conflict ``step_changed``: it was asked
        with something else before, so the program is not the one that began it."""
        check_key(key)
        digest = _digest(asked)

        def transaction(conn: Connection) -> Step:
            self._fence(conn, run, sandbox)
            known = runs.step(conn, run.id, key)
            if known is None:
                step = Step(run.id, key, StepState.BEGUN, digest, run.epoch, 1, self._works.now_us())
                runs.add_step(conn, step)
                return step
            if known.digest != digest:
                raise Conflict(
                    f"step {key[:64]!r} was begun with another input",
                    code="step_changed",
                    hint="a step's name and input must be the same each time: give it another name",
                )
            if known.state is not StepState.DONE:
                runs.change_step(
                    conn,
                    run.id,
                    key,
                    state=StepState.BEGUN,
                    attempts=known.attempts + 1,
                    epoch=run.epoch,
                )
            found = runs.step(conn, run.id, key)
            assert found is not None
            return found

        return await self._works.database.write(transaction)

    async def commit(
        self, run: Run, sandbox: Sandbox | None, key: str, result: Any, checkpoint: Checkpoint
    ) -> Step | None:
        """Commit a step that was begun. Idempotent: a second time, it is what the first one recorded.

        None: it is under way. Nobody is kept waiting for it over a connection, because that would be captured
        with the machine, and whoever waited in it would wait for ever.
        """
        check_value(result)
        known = await self._works.database.read(lambda conn: runs.step(conn, run.id, key))
        if known is None:
            raise NotFound(f"step {key[:64]!r} was not begun", code="step_not_begun")
        if known.state is StepState.DONE:
            return known
        machine = None if sandbox is None or checkpoint is Checkpoint.NEVER else sandbox.id
        answer_s = ANSWER_S if machine is None else 0.0  # nothing is captured for it, and it is soon done
        return await self.under_way(
            run, key, lambda: self._commit(run, sandbox, key, result, machine), answer_s=answer_s
        )

    async def under_way(
        self,
        run: Run,
        key: str,
        work: Callable[[], Coroutine[Any, Any, Step]],
        *,
        answer_s: float = 0.0,
    ) -> Step | None:
        """A step that takes its time, begun once: what it came to, or None so far. Whoever begins it waits
        for ``answer_s``."""
        name = run.id, run.epoch, key
        if (task := self._under_way.get(name)) is None:
            task = asyncio.ensure_future(work())
            self._under_way[name] = task
            task.add_done_callback(lambda done: self._finished(name, done))
            if answer_s:
                await asyncio.wait({task}, timeout=answer_s)
        if not task.done():
            return None
        self._under_way.pop(name, None)
        return task.result()

    def _finished(self, name: tuple[str, int, str], task: asyncio.Task[Step]) -> None:
        """What was committed is in the tables. Why one failed is kept for whoever asks."""
        if task.cancelled() or task.exception() is None:
            self._under_way.pop(name, None)

    async def commit_in(self, run: Run, box: Box, key: str, result: Any) -> Step:
        """Commit a step with the machine of a sandbox that the run drives."""
        return await self._commit(run, None, key, result, box.sandbox_id, box)

    async def _commit(
        self,
        run: Run,
        sandbox: Sandbox | None,
        key: str,
        result: Any,
        machine: str | None,
        box: Box | None = None,
    ) -> Step:
        works = self._works
        keep = (await works.version(run)).keep
        checkpoint = Checkpoint.NEVER if machine is None else Checkpoint.ALWAYS
        events = works.log(run.id, "run.step", key=key, checkpoint=checkpoint.value)
        works.checkpoint("commit.logged")
        left: list[str] = []

        def record(conn: Connection, snapshot: Snapshot | None) -> None:
            now = self._fence(conn, run, sandbox)
            runs.change_step(
                conn,
                run.id,
                key,
                state=StepState.DONE,
                result=result,
                number=now.committed + 1,
                snapshot_id=None if snapshot is None else snapshot.id,
                ended_at=works.now_us(),
                epoch=run.epoch,
                events=events,
                effects=effects.count_of_run(conn, run.id),
            )
            runs.change(conn, run.id, committed=now.committed + 1)
            if snapshot is not None and box is not None:
                boxes.change(conn, run.id, box.key, snapshot_id=snapshot.id)
                left.extend(drop_machines(conn, run.id, [box.snapshot_id]))
            elif snapshot is not None:
                runs.change(conn, run.id, snapshot_id=snapshot.id)
                left.extend(_superseded(conn, now, keep))

        if machine is not None:
            await works.sandboxes.checkpoint(run.tenant, machine, record)
        else:
            await works.database.write(lambda conn: record(conn, None), durable=True)
        works.checkpoint("commit.done")
        if left:
            await works.sandboxes.drop_snapshots(left)
        done = await works.database.read(lambda conn: runs.step(conn, run.id, key))
        assert done is not None
        return done

    async def fail(self, run: Run, sandbox: Sandbox | None, key: str, why: str) -> None:
        """A step was tried and failed; the program decides whether it tries again."""

        def transaction(conn: Connection) -> None:
            self._fence(conn, run, sandbox)
            known = runs.step(conn, run.id, key)
            if known is None:
                raise NotFound(f"step {key[:64]!r} was not begun", code="step_not_begun")
            if known.state is StepState.BEGUN:
                runs.change_step(conn, run.id, key, state=StepState.FAILED, ended_at=self._works.now_us())

        await self._works.database.write(transaction)
        self._works.log(run.id, "run.step_failed", key=key, why=why[:1000])

    async def keep(self, run: Run, sandbox: Sandbox) -> None:
        """Keep the machine as it is, for a program that commits nothing."""
        left: list[str] = []
        keep = (await self._works.version(run)).keep

        def record(conn: Connection, snapshot: Snapshot) -> None:
            now = self._fence(conn, run, sandbox)
            runs.change(conn, run.id, snapshot_id=snapshot.id)
            left.extend(_superseded(conn, now, keep))

        await self._works.sandboxes.checkpoint(run.tenant, sandbox.id, record)
        self._works.log(run.id, "run.kept")
        await self._works.sandboxes.drop_snapshots(left)

    async def close(self) -> None:
        """Leave what is under way: it is asked for again."""
        tasks = list(self._under_way.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def forget(self, run_id: str) -> None:
        """A run's machine is gone, and with it whoever asked."""
        for name in [name for name in self._under_way if name[0] == run_id]:
            self._under_way.pop(name).cancel()

    async def result(self, run: Run, sandbox: Sandbox | None, value: Any) -> None:
        """What the run returns, if it ends well; the last one counts."""

        def transaction(conn: Connection) -> None:
            self._fence(conn, run, sandbox)
            runs.change(conn, run.id, result=value)

        await self._works.database.write(transaction)

    async def check(self, run: Run, sandbox: Sandbox) -> None:
        """Raises :class:`Superseded` for a machine that is not its run's any more."""
        await self._works.database.read(lambda conn: self._fence(conn, run, sandbox))

    def _fence(self, conn: Connection, run: Run, sandbox: Sandbox | None) -> Run:
        """The run as it is in this transaction. Raises :class:`Superseded` for a machine that is not its own
        any more, and for a worker that it was taken from."""
        self._works.lease.fence(conn)
        now = runs.get(conn, run.id)
        alive = now is not None and now.state in (RunState.STARTING, RunState.RUNNING, RunState.WAITING)
        own = now is not None and now.sandbox_id == (None if sandbox is None else sandbox.id)
        if now is None or not alive or not own or now.epoch != run.epoch:
            raise Superseded("the run is over, or goes on in another machine")
        return now


def taken(conn: Connection, run: Run) -> Run:
    """A workflow's run as it is, which must be the caller's: the epoch that it was taken in is in ``run``.
    Raises :class:`Superseded`."""
    now = runs.get(conn, run.id)
    if now is None or now.state is not RunState.RUNNING or now.epoch != run.epoch:
        raise Superseded("the run is over, or another worker has it")
    return now


def _superseded(conn: Connection, before: Run, keep: int) -> list[str]:
    """Forget the machines that a run has no more use for, now that there is a newer one."""
    kept = [step.snapshot_id for step in runs.machines(conn, before.id)]
    surplus = kept[keep:]
    if before.snapshot_id not in kept:
        surplus.append(before.snapshot_id)
    return drop_machines(conn, before.id, surplus)


def drop_machines(conn: Connection, run_id: str, surplus: Sequence[str | None]) -> list[str]:
    """Forget snapshots of a run. Those of which the files can go: no fork needs them."""
    unneeded = [each for each in surplus if each and runs.drop_machine(conn, run_id, each)]
    for snapshot_id in unneeded:
        snapshots.remove(conn, snapshot_id)
    return unneeded


def check_key(key: str) -> None:
    """Raise :class:`Invalid` unless it can name a step or a wait."""
    if not key or len(key) > KEY_MAX or not key.isprintable():
        raise Invalid(f"a key has 1 to {KEY_MAX} printable characters", code="bad_step_key")


def check_value(value: Any) -> None:
    """Raise :class:`Invalid` for a value that is too big to keep."""
    if len(json.dumps(value)) > VALUE_MAX:
        raise Invalid(
            "the value is over 512 KiB of JSON",
            code="value_too_big",
            hint="write it to a file, and hand that over: run.file(path)",
        )


def _digest(asked: Any) -> str:
    check_value(asked)
    canonical = json.dumps(asked, sort_keys=True, separators=(",", ":")).encode()
    return "sha256:" + hashlib.sha256(canonical).hexdigest()


__all__ = ["Commits", "Superseded", "check_key", "check_value", "drop_machines", "taken"]
