"""Workflows that are put aside and taken up again: rows of DBOS's own tables, where its verbs do not do.

A workflow that is put aside is in no process: no task, no thread, no poll. It is what DBOS calls cancelled,
and may be resumed; its own way to resume goes over a queue that is looked at once a second, and would begin a
second time what somebody else has just resumed. These calls block, and wait for a database that is away.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection, Sequence
from typing import Any, Final

import dbos._dbos as internals
from dbos._core import execute_dequeued_workflow
from dbos._schemas.system_database import SystemSchema
from dbos._sys_db import SystemDatabase, db_retry
from sqlalchemy import ColumnElement, Executable, and_, delete, literal_column, or_, select, update

ASIDE = "CANCELLED"
PENDING: Final = "PENDING"

_row = SystemSchema.workflow_status.c

# Literally so, these are the conditions of indexes.
_IS_PENDING = _row.status == literal_column(f"'{PENDING}'")
_IS_ASIDE = and_(
    _row.status.in_(
        [literal_column(f"'{each}'") for each in ("ERROR", ASIDE, "MAX_RECOVERY_ATTEMPTS_EXCEEDED")]
    ),
    _row.status == literal_column(f"'{ASIDE}'"),
)


def quieten() -> None:
    """End those of DBOS's threads that look at the database once a second for what we do not use: queues,
    schedules, delays and timeouts."""
    dbos = internals._get_dbos_instance()
    for end in (*dbos.background_thread_stop_events, dbos._background_jobs_stop_event):
        end.set()


def put_aside(name: str, executor: str) -> tuple[bool, bool]:
    """There is nothing to do for a workflow of that executor's, until somebody takes it up again. Whether it
    is put aside (if not, that executor has it no more), and whether others wrote to it meanwhile."""
    now = _system()._now_ms_sql()
    own = and_(_row.workflow_uuid == name, _row.executor_id == executor)
    _change(and_(own, _row.status == PENDING), status=ASIDE, owner_xid=None, updated_at=now, completed_at=now)
    if not _found(select(_row.status).where(own, _row.status == ASIDE)):
        return False, False
    letters = SystemSchema.notifications
    return True, bool(_write(delete(letters).where(letters.c.destination_uuid == name)))


def take_up(name: str, executor: str, dead: Collection[str] = ()) -> bool:
    """Let that executor, which is this process, work on a workflow that was put aside, or that one of those
    has which are no more. False: somebody else has it, or it is over."""
    dbos = internals._get_dbos_instance()
    status = dbos._sys_db.get_workflow_status(name)
    if status is None:
        return False
    token = str(uuid.uuid4())
    free = or_(
        _row.status == ASIDE,
        and_(_row.status == PENDING, _row.executor_id.in_(dead)),
        _row.owner_xid == token,  # this was done before the connection broke
    )
    mine: dict[str, Any] = {"status": PENDING, "executor_id": executor, "owner_xid": token}
    if not _change(and_(_row.workflow_uuid == name, free), **mine, completed_at=None):
        return False
    status["status"], status["executor_id"] = PENDING, executor
    execute_dequeued_workflow(dbos, status, token)
    return True


def is_elsewhere(name: str, executor: str) -> bool:
    """Whether another executor than that works on a workflow."""
    held = and_(_row.workflow_uuid == name, _row.status == PENDING, _row.executor_id != executor)
    return bool(_found(select(_row.workflow_uuid).where(held)))


def open_of(run_id: str) -> Sequence[str]:
    """The workflows of a run that are not over. What DBOS has for it looks at all that ever were."""
    own = _row.workflow_uuid.startswith(f"{run_id}.", autoescape=True)
    return _open(select(_row.workflow_uuid).where(own))


def open_under(executors: Collection[str], *, aside: bool) -> Sequence[str]:
    """What those executors have that is not over; with what was put aside, or without."""
    return _open(select(_row.workflow_uuid).where(_row.executor_id.in_(executors)), aside=aside)


def executors() -> Sequence[str]:
    """Whoever has something that is not over."""
    return sorted(set(_open(select(_row.executor_id).distinct())))


def _open(query: Any, *, aside: bool = True) -> Sequence[str]:
    conditions = [_IS_PENDING, _IS_ASIDE] if aside else [_IS_PENDING]
    return [str(value) for each in conditions for value in _found(query.where(each)) if value is not None]


def _change(which: ColumnElement[bool], **values: Any) -> int:
    """How many rows that were."""
    return _write(update(SystemSchema.workflow_status).where(which).values(**values))


def _write(statement: Executable) -> int:
    system = _system()

    @db_retry(sys_db=system)
    def write() -> int:
        with system.engine.begin() as connection:
            return int(connection.execute(statement).rowcount)

    return int(write())


def _found(query: Executable) -> Sequence[Any]:
    system = _system()

    @db_retry(sys_db=system)
    def read() -> Sequence[Any]:
        with system.engine.begin() as connection:
            return connection.execute(query).scalars().all()

    return list(read())


def _system() -> SystemDatabase:
    return internals._get_dbos_instance()._sys_db


__all__ = [
    "ASIDE",
    "executors",
    "is_elsewhere",
    "open_of",
    "open_under",
    "put_aside",
    "quieten",
    "take_up",
]
