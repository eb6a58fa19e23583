"""The verbs on sandboxes."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Annotated

from fastapi import APIRouter, Header, Query, Response
from fastapi.responses import JSONResponse

from wardian.api.e2b import answers
from wardian.api.e2b.bodies import (
    REFRESH_S_MAX,
    TIMEOUT_S,
    V1_TIMEOUT_S,
    ConnectSandbox,
    Fork,
    NewSandbox,
    NewTimeout,
    PauseSandbox,
    Refresh,
    ResumedSandbox,
)
from wardian.api.e2b.context import Bound, ControlPlane, Plane, SandboxId, Tenant
from wardian.api.e2b.listing import list_query, states_of
from wardian.api.e2b.network import Network
from wardian.model.egress import EgressGrant
from wardian.model.errors import Conflict, Invalid, Kind, Unsupported, WardianError
from wardian.model.sandbox import OnTimeout
from wardian.sandboxes.service import ListQuery

router = APIRouter()

_IDEMPOTENCY_KEY = re.compile(r"[a-z0-9-]{1,255}")

IdempotencyKey = Annotated[str | None, Header(alias="Idempotency-Key")]


@router.post("/v2/sandboxes", status_code=201)
async def create(
    plane: Plane, tenant: Tenant, bound: Bound, body: NewSandbox, idempotency_key: IdempotencyKey = None
) -> Response:
    """Create a sandbox. It is always secured by an access token."""
    if body.secure is False:
        raise Invalid("secure: false is not known to this version of the endpoint", code="unknown_option")
    return await _create(plane, tenant, bound, body, TIMEOUT_S, idempotency_key)


@router.post("/sandboxes", status_code=201)
async def create_v1(
    plane: Plane, tenant: Tenant, bound: Bound, body: NewSandbox, idempotency_key: IdempotencyKey = None
) -> Response:
    """Create a sandbox, as clients before 2.51 ask for it."""
    return await _create(plane, tenant, bound, body, V1_TIMEOUT_S, idempotency_key)


async def _create(
    plane: ControlPlane, tenant: str, bound: EgressGrant, body: NewSandbox, default_s: int, key: str | None
) -> Response:
    if key is not None and not _IDEMPOTENCY_KEY.fullmatch(key):
        raise Invalid(
            "Idempotency-Key: 1 to 255 lower-case letters, digits and '-'", code="bad_idempotency_key"
        )
    timeout_s = plane.timeout(default_s if body.timeout is None else body.timeout)
    spec = body.spec(timeout_s=timeout_s, idempotency_key=key, seal=plane.seal)
    await plane.check_egress(spec.egress)
    if spec.volume_mounts:
        spec = replace(spec, volume_mounts=await plane.volumes.find_mounts(tenant, spec.volume_mounts))
    mode = (body.network or Network()).mode(internet=body.allow_internet_access)
    sandbox = await plane.sandboxes.create(tenant, spec, mode=mode, bound=bound)
    return JSONResponse(answers.created(sandbox, domain=plane.domain), 201)


@router.post("/v2/sandboxes/{sandbox_id}/connect")
@router.post("/sandboxes/{sandbox_id}/connect")
async def connect(
    plane: Plane, tenant: Tenant, sandbox_id: SandboxId, body: ConnectSandbox | None = None
) -> Response:
    """Extend a running sandbox (200), or resume a paused one (201)."""
    asked = body or ConnectSandbox()
    timeout_s = plane.timeout(TIMEOUT_S if asked.timeout is None else asked.timeout)
    sandbox, resumed = await plane.sandboxes.connect(
        tenant, sandbox_id, timeout_s, memory=asked.memory is not False
    )
    return JSONResponse(answers.created(sandbox, domain=plane.domain), 201 if resumed else 200)


@router.post("/sandboxes/{sandbox_id}/resume", status_code=201)
async def resume(
    plane: Plane, tenant: Tenant, sandbox_id: SandboxId, body: ResumedSandbox | None = None
) -> Response:
    """Resume a paused sandbox, as old clients ask for it."""
    asked = body or ResumedSandbox()
    if asked.autoPause is not None:
        present = (await plane.sandboxes.get(tenant, sandbox_id)).spec.on_timeout
        if asked.autoPause is not (present is OnTimeout.PAUSE):
            raise Unsupported(
                "what happens at the timeout is decided at creation", code="auto_pause_is_fixed"
            )
    timeout_s = plane.timeout(V1_TIMEOUT_S if asked.timeout is None else asked.timeout)
    sandbox = await plane.sandboxes.resume(tenant, sandbox_id, timeout_s, memory=asked.memory is not False)
    return JSONResponse(answers.created(sandbox, domain=plane.domain), 201)


@router.get("/v2/sandboxes")
async def list_sandboxes(
    plane: Plane,
    tenant: Tenant,
    *,
    metadata: str | None = None,
    state: Annotated[list[str] | None, Query()] = None,
    limit: int | None = None,
    next_token: Annotated[str | None, Query(alias="nextToken")] = None,
    order: str | None = None,
    started_after: Annotated[str | None, Query(alias="startedAfter")] = None,
    template: str | None = None,
) -> Response:
    """A page of sandboxes. ``X-Next-Token`` is there only when there are more."""
    query = list_query(
        states=states_of(state),
        metadata=metadata,
        template=template,
        started_after=started_after,
        order=order,
        limit=limit,
        cursor=next_token,
    )
    return await _list(plane, tenant, query)


@router.get("/sandboxes")
async def list_running(plane: Plane, tenant: Tenant, *, metadata: str | None = None) -> Response:
    """The running sandboxes, as old clients ask for them."""
    return await _list(plane, tenant, list_query(states=frozenset({"running"}), metadata=metadata))


async def _list(plane: ControlPlane, tenant: str, query: ListQuery) -> Response:
    page = await plane.sandboxes.list(tenant, query)
    headers = {"X-Total-Running": str(page.total_running)}
    if page.next_cursor:
        headers["X-Next-Token"] = page.next_cursor
    return JSONResponse([answers.listed(sandbox) for sandbox in page.items], headers=headers)


@router.get("/sandboxes/{sandbox_id}")
async def get(plane: Plane, tenant: Tenant, sandbox_id: SandboxId) -> Response:
    sandbox = await plane.sandboxes.get(tenant, sandbox_id)
    enter = plane.sandboxes.may_enter(sandbox)
    return JSONResponse(answers.detail(sandbox, domain=plane.domain, enter=enter))


@router.delete("/sandboxes/{sandbox_id}", status_code=204)
async def kill(plane: Plane, tenant: Tenant, sandbox_id: SandboxId) -> None:
    """End a sandbox, running or paused."""
    await plane.sandboxes.kill(tenant, sandbox_id)


@router.post("/sandboxes/{sandbox_id}/timeout", status_code=204)
async def set_timeout(plane: Plane, tenant: Tenant, sandbox_id: SandboxId, body: NewTimeout) -> None:
    """Let the sandbox end that many seconds from now; 0 is at once."""
    await plane.sandboxes.set_timeout(tenant, sandbox_id, plane.timeout(body.timeout, smallest=0))


@router.post("/sandboxes/{sandbox_id}/refreshes", status_code=204)
async def refresh(plane: Plane, tenant: Tenant, sandbox_id: SandboxId, body: Refresh | None = None) -> None:
    """Keep the sandbox for at least that many seconds from now."""
    duration_s = body.duration if body and body.duration is not None else V1_TIMEOUT_S
    await plane.sandboxes.refresh(tenant, sandbox_id, min(duration_s, REFRESH_S_MAX))


@router.post("/sandboxes/{sandbox_id}/pause", status_code=204)
async def pause(
    plane: Plane, tenant: Tenant, sandbox_id: SandboxId, body: PauseSandbox | None = None
) -> None:
    """Capture memory and disk, or the files alone, and stop.

    The guest agent must take part, so every pause is a strict one.
    """
    asked = body or PauseSandbox()
    try:
        await plane.sandboxes.pause(tenant, sandbox_id, memory=asked.memory is not False)
    except WardianError as error:
        if asked.requireHealthyGuest and error.kind is Kind.GUEST:
            raise Conflict(error.message, code="sandbox_snapshot_guest_agent_unresponsive") from error
        raise


@router.post("/sandboxes/{sandbox_id}/fork", status_code=201)
async def fork(
    plane: Plane, tenant: Tenant, bound: Bound, sandbox_id: SandboxId, body: Fork | None = None
) -> Response:
    """Clone a running sandbox; it goes on. Each clone is told of by itself."""
    asked = body or Fork()
    timeout_s = plane.timeout(TIMEOUT_S if asked.timeout is None else asked.timeout)
    outcomes = await plane.sandboxes.fork(
        tenant,
        sandbox_id,
        count=asked.count,
        timeout_s=timeout_s,
        speculative=asked.speculative,
        bound=bound,
    )
    return JSONResponse([answers.forked(outcome, domain=plane.domain) for outcome in outcomes], 201)
