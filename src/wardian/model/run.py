"""A run: one durable execution of an agent. Its states, and the only legal transitions between them.

Rules of this file: everything that decides what may happen to a run next is the table ``TRANSITIONS``; no
I/O, no clock.

    queued ──► starting ──► running ◄──► waiting      waiting: for a time, a human or another run; no machine
                  ▲            │            │
                  └─ recovering ◄───────────┘         recovering: its machine is gone, its last commit is not
    every state but the last three ──► succeeded, failed or cancelled
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from wardian.model.confines import FREE, Confines
from wardian.model.errors import Conflict

RUN_HOST = "run.wardian.internal"
"""By which a program inside reaches its own run."""


class RunState(StrEnum):
    QUEUED = "queued"  # a row; whoever asked has its id
    STARTING = "starting"  # perhaps a sandbox, which nobody has heard of
    RUNNING = "running"  # a sandbox, in which its entry runs
    WAITING = "waiting"  # a paused sandbox, and what it waits for
    RECOVERING = "recovering"  # no sandbox; the last commit
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


class RunEvent(StrEnum):
    START = "start"
    STARTED = "started"
    WAIT = "wait"
    WAKE = "wake"
    LOSE = "lose"
    SUCCEED = "succeed"
    FAIL = "fail"
    CANCEL = "cancel"
    RETRY = "retry"
    REWIND = "rewind"


FINAL = frozenset({RunState.SUCCEEDED, RunState.FAILED, RunState.CANCELLED})

WORKING = frozenset({RunState.STARTING, RunState.RUNNING, RunState.RECOVERING})
"""With a machine, or about to have one."""

_ENDS = {RunEvent.FAIL: RunState.FAILED, RunEvent.CANCEL: RunState.CANCELLED}
_AGAIN = {RunEvent.RETRY: RunState.RECOVERING, RunEvent.REWIND: RunState.RECOVERING}

TRANSITIONS: Mapping[RunState, Mapping[RunEvent, RunState]] = {
    RunState.QUEUED: {RunEvent.START: RunState.STARTING, **_ENDS},
    RunState.STARTING: {
        RunEvent.START: RunState.STARTING,  # again, after a crash
        RunEvent.STARTED: RunState.RUNNING,
        RunEvent.LOSE: RunState.RECOVERING,
        **_ENDS,
    },
    RunState.RUNNING: {
        RunEvent.WAIT: RunState.WAITING,
        RunEvent.LOSE: RunState.RECOVERING,
        RunEvent.SUCCEED: RunState.SUCCEEDED,
        **_ENDS,
    },
    RunState.WAITING: {
        RunEvent.WAKE: RunState.RUNNING,
        RunEvent.START: RunState.STARTING,  # a workflow: a worker begins it again, and it replays
        RunEvent.LOSE: RunState.RECOVERING,
        **_ENDS,
    },
    RunState.RECOVERING: {RunEvent.START: RunState.STARTING, **_ENDS},
    RunState.SUCCEEDED: {RunEvent.REWIND: RunState.RECOVERING},
    RunState.FAILED: _AGAIN,
    RunState.CANCELLED: _AGAIN,
}


def next_state(state: RunState, event: RunEvent) -> RunState:
    """The state after ``event``; an event the table does not name is a :class:`Conflict`."""
    try:
        return TRANSITIONS[state][event]
    except KeyError:
        raise Conflict(f"a run that is {state} cannot {event}", code="illegal_transition") from None


class StepState(StrEnum):
    BEGUN = "begun"
    DONE = "done"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Trigger:
    """What began a run: ``api``, ``webhook``, ``schedule``, ``agent`` or ``fork``; the one thing in which
    runs of one input differ."""

    kind: str
    detail: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a run failed: a stable code, and words."""

    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Run:
    """A run as recorded. Times are microseconds since the epoch, UTC.

    ``epoch`` is raised with every machine made for it, which is what its sandboxes are told apart by;
    ``began`` is the epoch in which its entry was started, in memory that later machines have.
    ``snapshot_id`` is the machine of the last commit, ``committed`` that commit's number.
    """

    id: str
    tenant: str
    agent_id: str
    agent: str
    version: int
    trigger: Trigger
    input: Any
    state: RunState
    created_at: int
    deadline_at: int
    generation: int = 0  # how often it was retried after its end
    epoch: int = 0
    attempts: int = 0
    began: int = 0
    sandbox_id: str | None = None
    snapshot_id: str | None = None
    committed: int = 0
    key: str | None = None
    line: tuple[str, ...] = ()  # the runs that it comes of, the first one first, its parent last
    forked_from: str | None = None
    confines: Confines = FREE
    worker: str | None = None  # of a workflow: what works on it, and until when that is believed
    leased_until: int | None = None
    started_at: int | None = None
    ended_at: int | None = None
    result: Any = None
    failure: Failure | None = None
    runner: Mapping[str, Any] | None = None  # the release that it was given: ``runs/fitting.py``

    @property
    def parent_id(self) -> str | None:
        """The run that began it."""
        return self.line[-1] if self.line else None

    @property
    def root_id(self) -> str:
        """Of the tree that it is in."""
        return self.line[0] if self.line else self.id


@dataclass(frozen=True, slots=True)
class Step:
    """One unit of a run. ``number`` is its commit's; ``digest`` is of what it was asked with, so that a
    program which asks otherwise the second time is noticed."""

    run_id: str
    key: str
    state: StepState
    digest: str
    epoch: int
    attempts: int
    begun_at: int
    ended_at: int | None = None
    number: int | None = None
    result: Any = None
    snapshot_id: str | None = None
    events: int = 0  # how far the run's event log was
    effects: int = 0  # how many effects its ledger had


@dataclass(frozen=True, slots=True)
class Removed:
    """What is left of a run that was removed. ``key`` is the one it was begun with, which begins no other as
    long as its agent is there. ``cleared``: its files and what its engine knew are gone; ``logged``: its log
    is not."""

    id: str
    tenant: str
    agent_id: str
    key: str | None
    generation: int
    removed_at: int
    cleared: bool = False
    logged: bool = True


HELD = "pause"
"""The kind of wait that somebody outside imposes."""


@dataclass(frozen=True, slots=True)
class Wait:
    """What a run waits for: a time, an answer of a human's, a message, or the end of another run."""

    run_id: str
    key: str
    kind: str  # "sleep", "ask", "run", "message", or HELD
    asked: Mapping[str, Any]
    begun_at: int
    until: int | None = None  # when it is over by itself
    answered_at: int | None = None
    answer: Any = None


@dataclass(frozen=True, slots=True)
class Message:
    """What a run is told by another one of its tree, or from outside (``sender`` is None).

    ``number`` counts those to one run; ``key`` makes one that is sent again the same. ``taken_by`` is the
    wait that has it.
    """

    run_id: str
    number: int
    key: str
    topic: str
    body: Any
    sent_at: int
    sender: str | None = None
    taken_by: str | None = None


@dataclass(frozen=True, slots=True)
class Box:
    """A sandbox that a workflow drives. ``snapshot_id`` is its machine at the last step committed in it;
    ``epoch`` is the run's when the sandbox was made or woken; ``resting``: it was put to rest with the run,
    and nothing happened in it since."""

    run_id: str
    key: str
    template: str
    sandbox_id: str
    epoch: int
    snapshot_id: str | None = None
    resting: bool = False
