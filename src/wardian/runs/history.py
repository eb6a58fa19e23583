"""Going back: a run that goes on from its last commit, from an earlier one, or as another run.

What is done again is done by the machine of a commit that is kept, or by the entry, started anew; either way
steps up to the chosen commit are answered from the record.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from sqlalchemy import Connection

from wardian.model.confines import Confines
from wardian.model.errors import Invalid, Unsupported
from wardian.model.run import Run, RunEvent, RunState, Step, Trigger
from wardian.runs.admission import admit
from wardian.runs.commits import drop_machines
from wardian.runs.course import Course
from wardian.runs.engine import Engine
from wardian.runs.works import RunWorks
from wardian.sandboxes.identity import new_id
from wardian.store import boxes, runners, runs


class History:
    """Of all runs of a server. No run goes further than whoever has it go on may."""

    def __init__(self, works: RunWorks, course: Course, engine: Engine) -> None:
        self._works, self._course, self._engine = works, course, engine

    async def retry(self, run: Run, confines: Confines) -> Run:
        """Go on with a run that failed or was cancelled: what it committed stays, and it has all its attempts
        and its time again."""
        deadline = await self._deadline(run)
        async with self._course.alone(run):
            began = run.began if run.snapshot_id is not None else 0
            runner = run.runner if run.snapshot_id is not None else None  # else it gets today's
            again = self._again(run, deadline, confines, began=began, runner=runner)
            run = await self._works.change(run.id, RunEvent.RETRY, **again)
        await self._engine.begin(run.id, run.generation)
        return run

    async def rewind(self, run: Run, number: int, confines: Confines) -> Run:
        """Go on with a run that is over from its commit of that number; 0 is its beginning. Later steps are
        forgotten, and the runs that it began since are cancelled. What it did outside stays done: the ledger
        answers what is asked there again."""
        deadline = await self._deadline(run)
        late: list[Run] = []
        left: list[str] = []

        def back(conn: Connection, run: Run) -> None:
            _check_boxes(conn, run, number)
            at = _instant(conn, run, number)
            surplus = [
                step.snapshot_id for step in runs.machines(conn, run.id) if (step.number or 0) > number
            ]
            base = _machine(conn, run, number)
            if run.snapshot_id is not None and (base is None or run.snapshot_id != base.snapshot_id):
                surplus.append(run.snapshot_id)
            left.extend(drop_machines(conn, run.id, surplus))
            left.extend(drop_machines(conn, run.id, [box.snapshot_id for box in boxes.of_run(conn, run.id)]))
            boxes.remove(conn, run.id)
            runs.remove_steps(conn, run.id, number)
            runs.remove_waits(conn, run.id, at)
            late.extend(runs.release_keys(conn, run.id, at, f"~{run.generation + 1}"))
            machine = None if base is None else base.snapshot_id
            began = 0 if base is None else run.began
            runner = None if base is None else run.runner
            runs.change(conn, run.id, snapshot_id=machine, committed=number, began=began, runner=runner)

        async with self._course.alone(run):
            again = self._again(run, deadline, confines)
            run = await self._works.change(run.id, RunEvent.REWIND, also=back, **again)
        await self._works.sandboxes.drop_snapshots(left)
        for child in late:
            await self._course.cancel(child)
        await self._engine.begin(run.id, run.generation)
        return run

    async def fork(self, run: Run, number: int | None, values: Mapping[str, Any], confines: Confines) -> Run:
        """Begin another run that is what this one was at a commit, its last one if none is named.

        It has a machine of its own from then on. ``values`` may give it another ``input``, if it is forked
        from the beginning.
        """
        version = await self._works.version(run)
        now = self._works.now_us()

        def transaction(conn: Connection) -> Run:
            self._works.lease.fence(conn)
            whole = runs.get(conn, run.id) or run
            at = whole.committed if number is None else number
            _check_boxes(conn, whole, at)
            instant = now if number is None else _instant(conn, whole, at)
            if values and at:
                raise Invalid(
                    "a fork with another input begins at the beginning",
                    code="bad_fork",
                    hint="give commit 0, or leave the input as it was",
                )
            base = _machine(conn, whole, at)
            machine = None if base is None else base.snapshot_id
            if number is None:
                machine = whole.snapshot_id  # newer than the last commit, perhaps
            forked = Run(
                id=new_id("r"),
                tenant=whole.tenant,
                agent_id=whole.agent_id,
                agent=whole.agent,
                version=whole.version,
                trigger=Trigger("fork", {"run": whole.id, "commit": at}),
                input=values.get("input", whole.input),
                state=RunState.QUEUED,
                created_at=now,
                deadline_at=now + version.limits.timeout_s * 1_000_000,
                began=0 if machine is None else whole.began,
                snapshot_id=machine,
                committed=at,
                forked_from=whole.id,
                confines=whole.confines.within(confines),
                runner=None if machine is None else whole.runner,
            )
            if machine is not None:
                runners.copy_place(conn, whole.id, forked.id)
            admit(self._works, conn, forked, version)
            _copy(conn, whole, forked, instant)
            return forked

        forked = await self._works.database.write(transaction, durable=True)
        await self._engine.begin(forked.id, forked.generation)
        return forked

    async def _deadline(self, run: Run) -> int:
        version = await self._works.version(run)
        return self._works.now_us() + version.limits.timeout_s * 1_000_000

    def _again(self, run: Run, deadline: int, confines: Confines, **more: Any) -> dict[str, Any]:
        return {
            "generation": run.generation + 1,
            "attempts": 0,
            "sandbox_id": None,
            "deadline_at": deadline,
            "ended_at": None,
            "failure": None,
            "result": None,
            "confines": run.confines.within(confines),
            **more,
        }


def _instant(conn: Connection, run: Run, number: int) -> int:
    """When a commit was made. Raises :class:`Invalid` for one that there is not."""
    if number == 0:
        return run.created_at
    found = next((step for step in runs.steps(conn, run.id) if step.number == number), None)
    if found is None or found.ended_at is None:
        raise Invalid(
            f"run {run.id} has no commit {number}",
            code="commit_not_found",
            hint=f"it has {run.committed}; `wardian run inspect` lists them",
        )
    return found.ended_at


def _check_boxes(conn: Connection, run: Run, number: int) -> None:
    """Raises :class:`Unsupported` if a workflow's sandboxes were another thing at that commit."""
    if number and boxes.of_run(conn, run.id):
        raise Unsupported(
            "a workflow that drives sandboxes goes back to its beginning, or on from its end",
            code="boxes_not_kept",
            hint="give commit 0, or `wardian run retry`",
        )


def _machine(conn: Connection, run: Run, number: int) -> Step | None:
    """The commit that has the newest machine which is not newer."""
    return next((step for step in runs.machines(conn, run.id) if 0 < (step.number or 0) <= number), None)


def _copy(conn: Connection, run: Run, forked: Run, instant: int) -> None:
    """What a fork remembers: the steps that were committed, and what waits were answered."""
    for step in runs.steps(conn, run.id):
        if step.number is not None and step.number <= forked.committed:
            runs.add_step(conn, replace(step, run_id=forked.id))
    for wait in runs.waits(conn, run.id, instant):
        if wait.answered_at is not None:
            runs.add_wait(conn, replace(wait, run_id=forked.id))


__all__ = ["History"]
