"""Usage: what is metered, in intervals that cover a sandbox's life without gap or overlap.

Everything is an integer: times in microseconds since the epoch, sizes in bytes or MiB as named.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from wardian.model.resources import Resources
from wardian.model.sandbox import State


class UsageKind(StrEnum):
    """What a stretch of a sandbox's life costs."""

    COMPUTE = "compute"  # a machine that may use CPU
    FROZEN = "frozen"  # a machine that keeps its memory and uses no CPU
    STORAGE = "storage"  # a snapshot on disk


KIND_OF_STATE: dict[State, UsageKind | None] = {
    State.CREATING: UsageKind.COMPUTE,
    State.RUNNING: UsageKind.COMPUTE,
    State.FROZEN: UsageKind.FROZEN,
    State.SNAPSHOTTING: UsageKind.COMPUTE,
    State.PAUSING: UsageKind.COMPUTE,
    State.PAUSED: UsageKind.STORAGE,
    State.RESUMING: UsageKind.STORAGE,  # until it runs again, a resume costs its owner nothing more
    State.KILLING: None,  # whatever it was before
    State.ENDED: None,  # nothing: the last interval is closed
}
"""The kind of interval that is open in each state; None leaves the open one as it is."""


@dataclass(frozen=True, slots=True)
class Interval:
    """One stretch of one kind. ``closed_at`` None: still going on."""

    sandbox_id: str
    tenant: str
    kind: UsageKind
    opened_at: int
    closed_at: int | None
    resources: Resources
    stored_bytes: int = 0  # of the snapshot, for storage


@dataclass(frozen=True, slots=True)
class Usage:
    """Sums over a range, in microseconds times the resource."""

    cpu_us: int = 0  # cores x compute time
    memory_mib_us: int = 0  # MiB x compute time
    frozen_memory_mib_us: int = 0  # MiB x frozen time
    stored_byte_us: int = 0  # snapshot bytes x storage time
    compute_us: int = 0
    frozen_us: int = 0
    storage_us: int = 0
