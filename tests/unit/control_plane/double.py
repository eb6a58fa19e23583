"""What stands behind the control plane in its tests: a service that remembers what it was asked.

Its behaviour is tested with the real one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import httpx

from wardian.api.auth import new_key
from wardian.api.e2b.context import sandbox_unknown
from wardian.isolation.port import IsolationLevel
from wardian.model.egress import Egress, EgressGrant, EgressMode
from wardian.model.errors import WardianError
from wardian.model.isolation import Wanted
from wardian.model.resources import Resources
from wardian.model.sandbox import Sandbox, SandboxSpec, Snapshot, State
from wardian.model.template import Build
from wardian.sandboxes.egress import NO_BOUND, settled
from wardian.sandboxes.service import ListQuery, Metric, Page, Sandboxes
from wardian.sandboxes.templates import house_edition
from wardian.store.keys import ApiKey

KEY, OTHER_KEY, NARROW_KEY = new_key(), new_key(), new_key()
NARROW = EgressGrant(EgressMode.GRANTED, ("*.good.test",))
ID = "i0123456789abcdefghi"
ROOT = "sha256:" + "ab" * 32
MADE_AT = 1_700_000_000_123_456
BASE = house_edition("base", root_digest=ROOT, tree=ROOT, resources=Resources(), created_at=MADE_AT)


def api_key(tenant: str) -> ApiKey:
    """A key's record."""
    return ApiKey(f"k-{tenant}", tenant, "", "e2b_", 1, None)


def sandbox(**changes: Any) -> Sandbox:
    made = Sandbox(
        id=ID,
        tenant="t1",
        template_id="tmpl1",
        template_alias="base",
        template_digest=ROOT,
        state=State.RUNNING,
        epoch=1,
        driver="gvisor",
        isolation="gvisor",
        resources=Resources(),
        spec=SandboxSpec(metadata={"a": "b"}),
        access_token="envd-token",
        traffic_token="traffic-token",
        created_at=1_700_000_000_000_000,
        started_at=1_700_000_000_000_007,
        end_at=1_700_000_300_000_007,
    )
    return replace(made, **changes)


class Service(Sandboxes):
    """Remembers the last call; knows one sandbox of one tenant, and fails when told to."""

    def __init__(self) -> None:
        self.asked: tuple[Any, ...] = ()
        self.sandbox = sandbox()
        self.error: WardianError | None = None
        self.resumed = False
        self.outcomes: Sequence[Sandbox | WardianError] = ()
        self.events_held: list[Mapping[str, Any]] = []
        self.wanted = Wanted()

    def within(self, wanted: Wanted) -> Service:
        self.wanted = wanted
        return self

    def may_enter(self, sandbox: Sandbox) -> bool:
        return IsolationLevel(sandbox.isolation).satisfies(self.wanted.minimum)

    def _ask(self, tenant: str, sandbox_id: str, *what: Any) -> Sandbox:
        self.asked = what
        if self.error:
            raise self.error
        if (tenant, sandbox_id) != (self.sandbox.tenant, self.sandbox.id):
            raise sandbox_unknown(sandbox_id)
        return self.sandbox

    async def create(
        self,
        tenant: str,
        spec: SandboxSpec,
        *,
        mode: EgressMode | None = None,
        bound: EgressGrant = NO_BOUND,
    ) -> Sandbox:
        spec = settled(spec, mode, default=EgressGrant(), bound=bound)
        self.asked = (tenant, spec)
        if self.error:
            raise self.error
        return replace(self.sandbox, spec=spec)

    async def get(self, tenant: str, sandbox_id: str) -> Sandbox:
        return self._ask(tenant, sandbox_id)

    async def list(self, tenant: str, query: ListQuery) -> Page:
        self.asked = (query,)
        return Page((self.sandbox,), "cursor1" if query.cursor is None else None, 1)

    async def kill(self, tenant: str, sandbox_id: str) -> None:
        self._ask(tenant, sandbox_id)

    async def set_timeout(self, tenant: str, sandbox_id: str, timeout_s: int) -> Sandbox:
        return self._ask(tenant, sandbox_id, timeout_s)

    async def refresh(self, tenant: str, sandbox_id: str, duration_s: int) -> Sandbox:
        return self._ask(tenant, sandbox_id, duration_s)

    async def connect(
        self, tenant: str, sandbox_id: str, timeout_s: int | None, *, memory: bool = True
    ) -> tuple[Sandbox, bool]:
        return self._ask(tenant, sandbox_id, timeout_s, memory), self.resumed

    async def set_network(
        self,
        tenant: str,
        sandbox_id: str,
        *,
        egress: Egress,
        mode: EgressMode | None = None,
        bound: EgressGrant = NO_BOUND,
    ) -> Sandbox:
        return self._ask(tenant, sandbox_id, egress, mode, bound)

    async def pause(self, tenant: str, sandbox_id: str, *, memory: bool = True) -> Sandbox:
        return self._ask(tenant, sandbox_id, memory)

    async def resume(
        self, tenant: str, sandbox_id: str, timeout_s: int | None, *, memory: bool = True
    ) -> Sandbox:
        return self._ask(tenant, sandbox_id, timeout_s, memory)

    async def fork(
        self,
        tenant: str,
        sandbox_id: str,
        *,
        count: int,
        timeout_s: int | None,
        speculative: bool = False,
        bound: EgressGrant = NO_BOUND,
    ) -> Sequence[Sandbox | WardianError]:
        self._ask(tenant, sandbox_id, count, timeout_s, speculative)
        return self.outcomes

    async def snapshot(
        self, tenant: str, sandbox_id: str, *, name: str | None, memory: bool = True
    ) -> Snapshot:
        self._ask(tenant, sandbox_id, name, memory)
        names = (name,) if name else ()
        return Snapshot(
            "snap1",
            tenant,
            sandbox_id,
            "tmpl1",
            "named",
            names,
            None,
            "d",
            1,
            1,
            ROOT,
            Resources(),
            isolation="gvisor",
        )

    async def list_snapshots(
        self, tenant: str, *, sandbox_id: str | None, name: str | None, limit: int, cursor: str | None
    ) -> tuple[Sequence[Snapshot], str | None]:
        self.asked = (sandbox_id, name, limit, cursor)
        return [], None

    async def delete_snapshot(self, tenant: str, snapshot_id: str) -> None:
        self.asked = (snapshot_id,)
        if snapshot_id != "ns/snap1:v1":
            raise sandbox_unknown(snapshot_id)

    async def forget_builds(self, builds: Sequence[Build], snapshot_ids: Sequence[str]) -> None:
        self.asked = tuple(build.template_id for build in builds)

    async def metrics(
        self, tenant: str, sandbox_id: str, start_us: int | None, end_us: int | None
    ) -> Sequence[Metric]:
        self._ask(tenant, sandbox_id, start_us, end_us)
        return [Metric(1_700_000_000_500_000, 2, 12.5, 1, 2, 3, 4, 5)]

    async def events(
        self, tenant: str, sandbox_id: str, *, after_seq: int = 0, limit: int = 1000
    ) -> Sequence[Mapping[str, Any]]:
        self._ask(tenant, sandbox_id)
        return [event for event in self.events_held if event["seq"] > after_seq][:limit]


def refused(answer: httpx.Response, status: int, code: str) -> str:
    """Check an error's shape; return its message."""
    body = answer.json()
    assert (answer.status_code, body["code"], body["error_code"]) == (status, status, code)
    return str(body["message"])
