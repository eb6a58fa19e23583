"""What runners are served with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from wardian.model.sandbox import Sandbox
from wardian.sandboxes.leases import NodeLease
from wardian.sandboxes.service import Sandboxes
from wardian.store.database import Database
from wardian.volumes.mounts import Mounts


@dataclass(frozen=True, slots=True)
class House:
    """One for a server. ``environment`` is what the processes of a sandbox start with; ``checkpoint`` is
    where tests stop the clock."""

    database: Database
    sandboxes: Sandboxes
    mounts: Mounts
    lease: NodeLease
    environment: Callable[[Sandbox], Mapping[str, str]]
    now_us: Callable[[], int]
    checkpoint: Callable[[str], None] = lambda name: None


__all__ = ["House"]
