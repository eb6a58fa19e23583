"""The verbs on sandboxes, as every front door (E2B API, CLI, later runs) calls them.

Each verb takes the tenant first: an id of another tenant is answered exactly like an id that does not exist.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from wardian.guest.guest import Guest
from wardian.model.errors import WardianError
from wardian.model.sandbox import Sandbox, SandboxSpec, Snapshot


@dataclass(frozen=True, slots=True)
class ListQuery:
    """Filters of a listing; all must match. ``states`` are public states (running, paused)."""

    states: frozenset[str] = frozenset({"running", "paused"})
    metadata: Mapping[str, str] = field(default_factory=dict)
    template: str | None = None
    started_after_us: int | None = None  # inclusive at whole seconds, as the E2B protocol wants
    ascending: bool = False
    limit: int = 100
    cursor: str | None = None


@dataclass(frozen=True, slots=True)
class Page:
    items: tuple[Sandbox, ...]
    next_cursor: str | None
    total_running: int


@dataclass(frozen=True, slots=True)
class Metric:
    """One host-side sample of a sandbox. Bytes; ``at`` in microseconds since the epoch."""

    at: int
    cpu_count: int
    cpu_used_pct: float
    memory_used: int
    memory_total: int
    memory_cache: int
    disk_used: int
    disk_total: int


class Sandboxes:
    """To be filled in by the lifecycle; the signatures are the agreement."""

    async def create(self, tenant: str, spec: SandboxSpec) -> Sandbox: ...
    async def get(self, tenant: str, sandbox_id: str) -> Sandbox: ...
    async def list(self, tenant: str, query: ListQuery) -> Page: ...
    async def kill(self, tenant: str, sandbox_id: str) -> None: ...
    async def set_timeout(self, tenant: str, sandbox_id: str, timeout_s: int) -> Sandbox: ...
    async def refresh(self, tenant: str, sandbox_id: str, duration_s: int) -> Sandbox: ...
    async def connect(self, tenant: str, sandbox_id: str, timeout_s: int | None) -> tuple[Sandbox, bool]:
        """Extend a running sandbox (never shorten) or resume a paused one. The flag says it was resumed."""

    async def pause(self, tenant: str, sandbox_id: str) -> Sandbox: ...
    async def resume(self, tenant: str, sandbox_id: str, timeout_s: int | None) -> Sandbox: ...
    async def fork(
        self, tenant: str, sandbox_id: str, *, count: int, timeout_s: int | None
    ) -> Sequence[Sandbox | WardianError]: ...
    async def snapshot(self, tenant: str, sandbox_id: str, *, name: str | None) -> Snapshot: ...
    async def list_snapshots(
        self, tenant: str, *, sandbox_id: str | None, name: str | None, limit: int, cursor: str | None
    ) -> tuple[Sequence[Snapshot], str | None]: ...
    async def delete_snapshot(self, tenant: str, snapshot_id: str) -> None: ...
    async def metrics(
        self, tenant: str, sandbox_id: str, start_us: int | None, end_us: int | None
    ) -> Sequence[Metric]: ...
    async def events(
        self, tenant: str, sandbox_id: str, *, after_seq: int = 0, limit: int = 1000
    ) -> Sequence[Mapping[str, Any]]: ...

    async def locate(self, sandbox_id: str) -> Sandbox | None:
        """For the data plane, which authenticates with the sandbox's own tokens: any tenant's, or None."""

    async def locate_by_signature(self, matches: Any) -> Sandbox | None:
        """The live sandbox whose access token satisfies ``matches(token) -> bool`` (signed /files URLs)."""

    @asynccontextmanager
    async def guest(self, sandbox_id: str) -> AsyncIterator[Guest]:
        """The guest, awake, for as long as the context lasts: thaws, waits out a transition, auto-resumes where
        the sandbox allows it. Raises NotFound when it is gone or paused without auto-resume."""
        raise NotImplementedError
        yield
