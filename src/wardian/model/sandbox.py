"""The sandbox: its states, the only legal transitions between them, and the values that describe one.

Rules of this file: everything that decides what may happen to a sandbox next is the table ``TRANSITIONS``;
no I/O, no clock, no asyncio. The picture in ``docs/lifecycle.svg`` is generated from the table.

    creating ──► running ◄──► frozen        frozen: idle, memory kept, no CPU, not billed as compute
                  │   ▲
        snapshotting  │                     snapshotting: captured for a fork or a snapshot, then goes on
                  │   │
               pausing ──► paused           paused: only a snapshot on disk; costs storage
                  ▲           │
                  └─ resuming ◄
    every state but ended ──► killing ──► ended
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from wardian.model.build import Surroundings
from wardian.model.egress import Egress, EgressMode, GrantedHost
from wardian.model.errors import Conflict
from wardian.model.isolation import Wanted
from wardian.model.resources import Resources
from wardian.model.volume import VolumeMount


class State(StrEnum):
    """What exists, per state, is said beside each member."""

    CREATING = "creating"  # a row and an intent; perhaps a machine, not yet the tenant's
    RUNNING = "running"  # a machine, attached, its guest answering
    FROZEN = "frozen"  # the same, stopped; thawed by the first request
    SNAPSHOTTING = "snapshotting"  # a machine, quiesced while it is captured; goes on afterwards
    PAUSING = "pausing"  # a machine, quiesced, and a half-written snapshot
    PAUSED = "paused"  # a complete snapshot, no machine
    RESUMING = "resuming"  # a complete snapshot and perhaps a machine
    KILLING = "killing"  # whatever existed before, on its way out
    ENDED = "ended"  # a row and the event log


class Event(StrEnum):
    """What can happen to a sandbox."""

    CREATED = "created"
    FREEZE = "freeze"
    THAW = "thaw"
    SNAPSHOT = "snapshot"
    SNAPSHOT_DONE = "snapshot_done"
    PAUSE = "pause"
    PAUSED = "paused"
    PAUSE_FAILED = "pause_failed"
    RESUME = "resume"
    RESUMED = "resumed"
    RESUME_FAILED = "resume_failed"
    KILL = "kill"
    GONE = "gone"
    MACHINE_LOST = "machine_lost"


TRANSITIONS: Mapping[State, Mapping[Event, State]] = {
    State.CREATING: {
        Event.CREATED: State.RUNNING,
        Event.KILL: State.KILLING,
        Event.MACHINE_LOST: State.KILLING,
    },
    State.RUNNING: {
        Event.FREEZE: State.FROZEN,
        Event.SNAPSHOT: State.SNAPSHOTTING,
        Event.PAUSE: State.PAUSING,
        Event.KILL: State.KILLING,
        Event.MACHINE_LOST: State.KILLING,
    },
    State.FROZEN: {
        Event.THAW: State.RUNNING,
        Event.SNAPSHOT: State.SNAPSHOTTING,
        Event.PAUSE: State.PAUSING,
        Event.KILL: State.KILLING,
        Event.MACHINE_LOST: State.KILLING,
    },
    State.SNAPSHOTTING: {
        Event.SNAPSHOT_DONE: State.RUNNING,  # also after a failed capture: the machine is still there
        Event.KILL: State.KILLING,
        Event.MACHINE_LOST: State.KILLING,
    },
    State.PAUSING: {
        Event.PAUSED: State.PAUSED,
        Event.PAUSE_FAILED: State.RUNNING,
        Event.KILL: State.KILLING,
        Event.MACHINE_LOST: State.KILLING,
    },
    State.PAUSED: {
        Event.RESUME: State.RESUMING,
        Event.KILL: State.KILLING,
    },
    State.RESUMING: {
        Event.RESUMED: State.RUNNING,
        Event.RESUME_FAILED: State.PAUSED,  # the snapshot is untouched: nothing is lost
        Event.MACHINE_LOST: State.PAUSED,
        Event.KILL: State.KILLING,
    },
    State.KILLING: {
        Event.KILL: State.KILLING,
        Event.MACHINE_LOST: State.KILLING,
        Event.GONE: State.ENDED,
    },
    State.ENDED: {},
}

FILES_ID = "f"
"""What the id of a snapshot of files alone begins with."""


def has_memory(snapshot_id: str) -> bool:
    """Whether the snapshot of that id holds memory. The first letter of an id says what it names."""
    return not snapshot_id.startswith(FILES_ID)


LIVE = frozenset({State.RUNNING, State.FROZEN, State.SNAPSHOTTING})
"""States in which requests to the guest are served (after a thaw where needed)."""


def next_state(state: State, event: Event) -> State:
    """The state after ``event``; an event the table does not name is a :class:`Conflict`."""
    try:
        return TRANSITIONS[state][event]
    except KeyError:
        raise Conflict(
            f"a sandbox that is {state} cannot {event}", code="illegal_transition", hint=_hint(state)
        ) from None


def _hint(state: State) -> str:
    if state is State.PAUSED:
        return "resume it first"
    if state is State.ENDED:
        return "it is gone; create a new one"
    return "wait for the transition under way, then try again"


class OnTimeout(StrEnum):
    """What happens when a sandbox's time is up."""

    KILL = "kill"
    PAUSE = "pause"


class EndReason(StrEnum):
    """Why a sandbox ended."""

    KILLED = "killed"  # asked for
    EXPIRED = "expired"  # its time was up
    MACHINE_LOST = "machine_lost"  # the machine died under it
    OUT_OF_MEMORY = "out_of_memory"
    CREATE_FAILED = "create_failed"


@dataclass(frozen=True, slots=True)
class SandboxSpec:
    """What a caller asks for."""

    template: str = "base"  # template id, alias, or snapshot id
    timeout_s: int = 300
    metadata: Mapping[str, str] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)
    on_timeout: OnTimeout = OnTimeout.KILL
    pause_memory: bool = True  # false: at the timeout only the files are kept
    auto_resume: bool = False
    allow_internet: bool = True
    secure: bool = True  # hand out an access token for the data plane
    allow_public_traffic: bool = True  # false: the sandbox's ports want a traffic token
    mask_request_host: str | None = None
    https_ports: tuple[int, ...] = ()  # inside, these speak TLS
    egress: Egress = field(default_factory=Egress)
    granted_hosts: tuple[GrantedHost, ...] = ()  # by the server to sandboxes of its own; no request sets it
    volume_mounts: tuple[VolumeMount, ...] = ()
    isolation: Wanted = field(default_factory=Wanted)  # once it is made, ``asked`` is what was gone by
    run: str | None = None  # the run that it is a machine of; no request sets it
    run_line: tuple[str, ...] = ()  # the runs that this one comes of
    agent: str | None = None  # the name of the agent that it is a run of
    driven: bool = False  # by the run, which is a workflow outside: it is not the run's machine
    idempotency_key: str | None = None
    speculative: bool = False  # a branch: what it would do outside is held until it is promoted

    @property
    def run_inside(self) -> str | None:
        """The run that programs in it speak for."""
        return None if self.driven else self.run

    @property
    def egress_mode(self) -> EgressMode:
        """How wide its egress is, before its own rules."""
        if self.allow_internet:
            return EgressMode.INTERNET
        return EgressMode.GRANTED if self.egress.grants else EgressMode.NONE


@dataclass(frozen=True, slots=True)
class Sandbox:
    """A sandbox as recorded. Times are microseconds since the epoch, UTC."""

    id: str
    tenant: str
    template_id: str
    template_alias: str | None
    template_digest: str  # the root image: the same bytes forever
    state: State
    epoch: int  # raised by every restore, fork and rollback
    driver: str  # what makes its machines
    isolation: str  # how strong its machine is, or was when it was paused: the level
    resources: Resources
    spec: SandboxSpec
    access_token: str | None
    traffic_token: str | None
    created_at: int
    started_at: int
    end_at: int
    ended_at: int | None = None
    end_reason: EndReason | None = None
    snapshot_id: str | None = None  # what it was resumed or will be resumed from
    parent_id: str | None = None  # the sandbox it was forked from
    machine_id: str | None = None  # the driver's name for the machine that runs it
    machine: Mapping[str, Any] | None = None  # the driver's record of that machine, for re-attachment
    build_id: str | None = None  # of the template; None: its image was not made by a build
    tree: str | None = None  # the digest of the files it began with
    surroundings: Surroundings = field(default_factory=Surroundings)  # what its processes start in

    @property
    def public_state(self) -> str:
        """``running`` or ``paused``, as the E2B protocol says it; a transition counts as where it began."""
        return "paused" if self.state in (State.PAUSED, State.RESUMING) else "running"

    @property
    def wakes_on_traffic(self) -> bool:
        """Whether a request resumes it when it is paused: not what kept only its files, which is a boot."""
        return self.spec.auto_resume and has_memory(self.snapshot_id or "")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A snapshot kept on purpose (a template of its own) or the memory of a paused sandbox."""

    id: str
    tenant: str
    sandbox_id: str
    template_id: str
    kind: str  # "pause", "fork", "named", or "run": the machine of a commit
    names: tuple[str, ...]
    parent_id: str | None
    digest: str  # of the manifest
    size_bytes: int
    created_at: int
    root_digest: str  # of the root image a restore needs
    resources: Resources
    build_id: str | None = None  # as its sandbox had them
    tree: str | None = None
    surroundings: Surroundings = field(default_factory=Surroundings)
    driver: str = ""  # what captured its memory, and alone can restore it; "" for files alone
    isolation: str = ""  # the level its sandbox had

    @property
    def has_memory(self) -> bool:
        """Whether it is restored with its processes; else it is files, and booted."""
        return has_memory(self.id)
