"""The meter: which interval is open follows from the state, and changes in the state's own transaction."""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import Connection

from wardian.model.sandbox import Sandbox, State
from wardian.model.usage import KIND_OF_STATE, Interval, Usage, UsageKind
from wardian.store import intervals


def begin(conn: Connection, sandbox: Sandbox) -> None:
    """Open the first interval of a new sandbox, at its creation."""
    _open(conn, sandbox, KIND_OF_STATE[sandbox.state], at=sandbox.created_at, stored_bytes=0)


def switch(
    conn: Connection, sandbox: Sandbox, before: State, after: State, *, at: int, stored_bytes: int = 0
) -> None:
    """Follow a change of state: close the open interval and open the next one, where the kind differs."""
    if after is State.ENDED:
        intervals.close_interval(conn, sandbox.id, at=at)
        return
    kind = KIND_OF_STATE[after]
    if kind is None or kind is KIND_OF_STATE[before]:
        return
    intervals.close_interval(conn, sandbox.id, at=at)
    _open(conn, sandbox, kind, at=at, stored_bytes=stored_bytes)


def _open(conn: Connection, sandbox: Sandbox, kind: UsageKind | None, *, at: int, stored_bytes: int) -> None:
    if kind is not None:
        intervals.open_interval(
            conn,
            Interval(sandbox.id, sandbox.tenant, kind, at, None, sandbox.resources, stored_bytes),
        )


def usage(conn: Connection, tenant: str, *, start: int, end: int, now: int) -> Usage:
    """What a tenant used in [start, end). Intervals still open count up to ``now``."""
    return total(intervals.of_tenant(conn, tenant, start=start, end=end), start=start, end=end, now=now)


def total(items: Iterable[Interval], *, start: int, end: int, now: int) -> Usage:
    """Sum intervals, each clipped to [start, end). Exact: the parts sum to the whole."""
    sums = dict.fromkeys(Usage.__dataclass_fields__, 0)
    for item in items:
        closed_at = now if item.closed_at is None else item.closed_at
        length = min(closed_at, end) - max(item.opened_at, start)
        if length <= 0:
            continue
        match item.kind:
            case UsageKind.COMPUTE:
                sums["compute_us"] += length
                sums["cpu_us"] += length * item.resources.cpu_count
                sums["memory_mib_us"] += length * item.resources.memory_mib
            case UsageKind.FROZEN:
                sums["frozen_us"] += length
                sums["frozen_memory_mib_us"] += length * item.resources.memory_mib
            case UsageKind.STORAGE:
                sums["storage_us"] += length
                sums["stored_byte_us"] += length * item.stored_bytes
    return Usage(**sums)
