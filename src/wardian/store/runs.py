"""Queries on runs, their steps and what they wait for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from sqlalchemy import Connection, Row, and_, delete, exists, func, insert, or_, select, update

from wardian.model.confines import Confines
from wardian.model.run import FINAL, WORKING, Failure, Message, Run, RunState, Step, StepState, Trigger, Wait
from wardian.store.codec import confines_of, confines_values
from wardian.store.pages import Position, in_order
from wardian.store.tables import run as table
from wardian.store.tables import run_box, run_message, run_step, run_wait


def add(conn: Connection, run: Run) -> None:
    conn.execute(
        insert(table),
        {
            "id": run.id,
            "tenant_id": run.tenant,
            "agent_id": run.agent_id,
            "agent": run.agent,
            "version": run.version,
            "trigger_kind": run.trigger.kind,
            "trigger_detail": dict(run.trigger.detail),
            "input": run.input,
            "state": run.state.value,
            "generation": run.generation,
            "epoch": run.epoch,
            "attempts": run.attempts,
            "began": run.began,
            "committed": run.committed,
            "key": run.key,
            "runner": run.runner,
            "snapshot_id": run.snapshot_id,
            "parent_id": run.parent_id,
            "root_id": run.root_id,
            "line": list(run.line),
            "forked_from": run.forked_from,
            "confines": confines_values(run.confines),
            "created_at": run.created_at,
            "deadline_at": run.deadline_at,
        },
    )


def change(conn: Connection, run_id: str, **values: Any) -> None:
    """Update columns; a state and a failure may be given as the values they are."""
    if isinstance(state := values.get("state"), RunState):
        values["state"] = state.value
    if isinstance(failure := values.get("failure"), Failure):
        values["failure"] = asdict(failure)
    if isinstance(confines := values.get("confines"), Confines):
        values["confines"] = confines_values(confines)
    conn.execute(update(table).where(table.c.id == run_id), values)


def get(conn: Connection, run_id: str) -> Run | None:
    """Anybody's."""
    row = conn.execute(select(table).where(table.c.id == run_id)).first()
    return None if row is None else _run_of(row)


def find(conn: Connection, tenant: str, run_id: str) -> Run | None:
    run = get(conn, run_id)
    return run if run is not None and run.tenant == tenant else None


def find_by_key(conn: Connection, tenant: str, agent_id: str, key: str) -> Run | None:
    query = select(table).where(table.c.tenant_id == tenant, table.c.agent_id == agent_id, table.c.key == key)
    row = conn.execute(query).first()
    return None if row is None else _run_of(row)


def page(
    conn: Connection, tenant: str, *, agent_id: str | None, after: Position | None, limit: int
) -> Sequence[Run]:
    """A tenant's runs, newest first."""
    query = select(table).where(table.c.tenant_id == tenant)
    if agent_id is not None:
        query = query.where(table.c.agent_id == agent_id)
    query = in_order(query, table.c.created_at, table.c.id, after=after).limit(limit)
    return [_run_of(row) for row in conn.execute(query)]


def unfinished(conn: Connection) -> Sequence[Run]:
    """Anybody's that have not ended."""
    final = [state.value for state in FINAL]
    return [_run_of(row) for row in conn.execute(select(table).where(table.c.state.not_in(final)))]


def count_open(conn: Connection, tenant: str) -> int:
    """How many of a tenant's have not ended."""
    final = [state.value for state in FINAL]
    query = select(func.count()).where(table.c.tenant_id == tenant, table.c.state.not_in(final))
    return conn.execute(query).scalar_one()


def count_tree(conn: Connection, root_id: str) -> int:
    """How many runs there are in a tree."""
    query = select(func.count()).where((table.c.root_id == root_id) | (table.c.id == root_id))
    return conn.execute(query).scalar_one()


def count_working(conn: Connection, parent_id: str) -> int:
    """How many of those that a run began have a machine that runs."""
    working = [state.value for state in WORKING]
    query = select(func.count()).where(table.c.parent_id == parent_id, table.c.state.in_(working))
    return conn.execute(query).scalar_one()


def tree(conn: Connection, root_id: str) -> Sequence[Run]:
    """All runs of a tree, the oldest first."""
    query = select(table).where((table.c.root_id == root_id) | (table.c.id == root_id))
    return [_run_of(row) for row in conn.execute(query.order_by(table.c.created_at, table.c.id))]


def forks(conn: Connection, run_id: str) -> Sequence[Run]:
    """Those that were forked from a run."""
    return [_run_of(row) for row in conn.execute(select(table).where(table.c.forked_from == run_id))]


def trees_over(conn: Connection, before: int, after: str, limit: int) -> Sequence[Run]:
    """The first runs of trees in which all had ended before then, by id, beyond ``after``."""
    other = table.alias()
    late = or_(other.c.ended_at.is_(None), other.c.ended_at >= before)
    whole = table.c.id == table.c.root_id, table.c.ended_at < before, table.c.id > after
    query = select(table).where(*whole, ~exists().where(other.c.root_id == table.c.id, late))
    return [_run_of(row) for row in conn.execute(query.order_by(table.c.id).limit(limit))]


def remove(conn: Connection, run_ids: Sequence[str]) -> None:
    """Runs, with their steps, waits, messages and boxes."""
    conn.execute(delete(table).where(table.c.id.in_(run_ids)))


def forked_line(conn: Connection, run: Run) -> Sequence[str]:
    """The runs that one was forked from, its own first."""
    line = []
    forked: Run | None = run
    while forked is not None and forked.forked_from is not None:
        line.append(forked.forked_from)
        forked = get(conn, forked.forked_from)
    return line


def children(conn: Connection, run_id: str) -> Sequence[Run]:
    query = select(table).where(table.c.parent_id == run_id).order_by(table.c.created_at, table.c.id)
    return [_run_of(row) for row in conn.execute(query)]


# ── steps


def step(conn: Connection, run_id: str, key: str) -> Step | None:
    query = select(run_step).where(run_step.c.run_id == run_id, run_step.c.key == key)
    row = conn.execute(query).first()
    return None if row is None else _step_of(row)


def steps(conn: Connection, run_id: str) -> Sequence[Step]:
    query = select(run_step).where(run_step.c.run_id == run_id).order_by(run_step.c.begun_at, run_step.c.key)
    return [_step_of(row) for row in conn.execute(query)]


def add_step(conn: Connection, step: Step) -> None:
    conn.execute(insert(run_step), {**asdict(step), "state": step.state.value})


def change_step(conn: Connection, run_id: str, key: str, **values: Any) -> None:
    if isinstance(state := values.get("state"), StepState):
        values["state"] = state.value
    conn.execute(update(run_step).where(run_step.c.run_id == run_id, run_step.c.key == key), values)


def machines(conn: Connection, run_id: str) -> Sequence[Step]:
    """The commits of which the machine is kept, the newest first."""
    query = select(run_step).where(run_step.c.run_id == run_id, run_step.c.snapshot_id.is_not(None))
    return [_step_of(row) for row in conn.execute(query.order_by(run_step.c.number.desc()))]


def drop_machine(conn: Connection, run_id: str, snapshot_id: str) -> bool:
    """A run needs a snapshot no more. True: nor does any other."""
    steps = run_step.c.snapshot_id == snapshot_id
    conn.execute(update(run_step).where(run_step.c.run_id == run_id, steps), {"snapshot_id": None})
    conn.execute(
        update(table).where(table.c.id == run_id, table.c.snapshot_id == snapshot_id), {"snapshot_id": None}
    )
    boxes = run_box.c.snapshot_id == snapshot_id
    conn.execute(update(run_box).where(run_box.c.run_id == run_id, boxes), {"snapshot_id": None})
    needed = (
        exists().where(steps) | exists().where(table.c.snapshot_id == snapshot_id) | exists().where(boxes)
    )
    return not conn.execute(select(needed)).scalar_one()


def remove_steps(conn: Connection, run_id: str, after: int) -> None:
    """Forget the steps beyond a commit, and those that were begun."""
    beyond = or_(run_step.c.number.is_(None), run_step.c.number > after)
    conn.execute(delete(run_step).where(run_step.c.run_id == run_id, beyond))


def release_keys(conn: Connection, parent_id: str, since: int, suffix: str) -> Sequence[Run]:
    """Let the keys of the runs that one began since then begin others; those that have not ended."""
    late = (table.c.parent_id == parent_id, table.c.created_at > since)
    conn.execute(update(table).where(*late, table.c.key.is_not(None)).values(key=table.c.key + suffix))
    return [
        run for row in conn.execute(select(table).where(*late)) if (run := _run_of(row)).state not in FINAL
    ]


def offered(conn: Connection, tenant: str, versions: Sequence[tuple[str, int]]) -> Run | None:
    """The run that has waited longest for a worker, of these agents' versions."""
    of_versions = or_(
        *(and_(table.c.agent_id == agent, table.c.version == number) for agent, number in versions)
    )
    starting = table.c.tenant_id == tenant, table.c.state == RunState.STARTING.value
    query = select(table).where(*starting, of_versions).order_by(table.c.created_at, table.c.id)
    row = conn.execute(query.limit(1)).first()
    return None if row is None else _run_of(row)


# ── messages


def message(conn: Connection, run_id: str, key: str) -> Message | None:
    query = select(run_message).where(run_message.c.run_id == run_id, run_message.c.key == key)
    row = conn.execute(query).first()
    return None if row is None else _message_of(row)


def send(conn: Connection, message: Message) -> Message:
    """Add a message, as the next one."""
    last = select(func.max(run_message.c.number)).where(run_message.c.run_id == message.run_id)
    sent = replace(message, number=(conn.execute(last).scalar_one() or 0) + 1)
    conn.execute(insert(run_message), asdict(sent))
    return sent


def untaken(conn: Connection, run_id: str, topic: str | None = None) -> Sequence[Message]:
    """What a run was told and has not asked for, the oldest first."""
    query = select(run_message).where(run_message.c.run_id == run_id, run_message.c.taken_by.is_(None))
    if topic is not None:
        query = query.where(run_message.c.topic == topic)
    return [_message_of(row) for row in conn.execute(query.order_by(run_message.c.number))]


def take(conn: Connection, message: Message, key: str) -> None:
    place = run_message.c.run_id == message.run_id, run_message.c.number == message.number
    conn.execute(update(run_message).where(*place), {"taken_by": key})


# ── waits


def wait(conn: Connection, run_id: str, key: str) -> Wait | None:
    query = select(run_wait).where(run_wait.c.run_id == run_id, run_wait.c.key == key)
    row = conn.execute(query).first()
    return None if row is None else _wait_of(row)


def waits_for(conn: Connection, run_id: str) -> Sequence[Wait]:
    """Whoever waits for the end of a run."""
    ends = run_wait.c.kind == "run", run_wait.c.asked["run"].as_string() == run_id
    return [
        _wait_of(row) for row in conn.execute(select(run_wait).where(run_wait.c.answered_at.is_(None), *ends))
    ]


def open_waits(conn: Connection, run_id: str) -> Sequence[Wait]:
    """What has no answer yet."""
    query = select(run_wait).where(run_wait.c.run_id == run_id, run_wait.c.answered_at.is_(None))
    return [_wait_of(row) for row in conn.execute(query.order_by(run_wait.c.begun_at))]


def waits(conn: Connection, run_id: str, begun_by: int) -> Sequence[Wait]:
    """Those that were begun by then."""
    query = select(run_wait).where(run_wait.c.run_id == run_id, run_wait.c.begun_at <= begun_by)
    return [_wait_of(row) for row in conn.execute(query)]


def remove_waits(conn: Connection, run_id: str, since: int) -> None:
    """Forget those that were begun since then; what they took may be taken again."""
    late = run_wait.c.run_id == run_id, run_wait.c.begun_at > since
    keys = select(run_wait.c.key).where(*late)
    conn.execute(
        update(run_message).where(run_message.c.run_id == run_id, run_message.c.taken_by.in_(keys)),
        {"taken_by": None},
    )
    conn.execute(delete(run_wait).where(*late))


def add_wait(conn: Connection, wait: Wait) -> None:
    conn.execute(insert(run_wait), {**asdict(wait), "asked": dict(wait.asked)})


def answer(conn: Connection, run_id: str, key: str, value: Any, at: int) -> bool:
    """Answer an open wait. False: it was answered before."""
    changed = conn.execute(
        update(run_wait).where(
            run_wait.c.run_id == run_id, run_wait.c.key == key, run_wait.c.answered_at.is_(None)
        ),
        {"answer": value, "answered_at": at},
    )
    return changed.rowcount == 1


def _run_of(row: Row[Any]) -> Run:
    return Run(
        id=row.id,
        tenant=row.tenant_id,
        agent_id=row.agent_id,
        agent=row.agent,
        version=row.version,
        trigger=Trigger(row.trigger_kind, row.trigger_detail),
        input=row.input,
        state=RunState(row.state),
        created_at=row.created_at,
        deadline_at=row.deadline_at,
        generation=row.generation,
        epoch=row.epoch,
        attempts=row.attempts,
        began=row.began,
        sandbox_id=row.sandbox_id,
        snapshot_id=row.snapshot_id,
        committed=row.committed,
        key=row.key,
        line=tuple(row.line),
        forked_from=row.forked_from,
        confines=confines_of(row.confines),
        worker=row.worker,
        leased_until=row.leased_until,
        started_at=row.started_at,
        ended_at=row.ended_at,
        result=row.result,
        failure=Failure(**row.failure) if row.failure else None,
        runner=row.runner,
    )


def _step_of(row: Row[Any]) -> Step:
    values = {name: getattr(row, name) for name in Step.__dataclass_fields__}
    return Step(**values | {"state": StepState(row.state)})


def _wait_of(row: Row[Any]) -> Wait:
    return Wait(**{name: getattr(row, name) for name in Wait.__dataclass_fields__})


def _message_of(row: Row[Any]) -> Message:
    return Message(**{name: getattr(row, name) for name in Message.__dataclass_fields__})
