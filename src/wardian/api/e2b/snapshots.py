"""Snapshots that are kept on purpose. To a client they are templates: created from, and deleted, as one."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Response
from fastapi.responses import JSONResponse

from wardian.api.e2b import answers
from wardian.api.e2b.bodies import NewSnapshot
from wardian.api.e2b.body import template_reference
from wardian.api.e2b.context import Plane, SandboxId, Tenant
from wardian.api.e2b.listing import checked_cursor, page_size

router = APIRouter()


@router.post("/sandboxes/{sandbox_id}/snapshots", status_code=201)
async def create(
    plane: Plane, tenant: Tenant, sandbox_id: SandboxId, body: NewSnapshot | None = None
) -> Response:
    """Capture a running sandbox; it goes on."""
    name = (body or NewSnapshot()).checked_name()
    kept = await plane.sandboxes.snapshot(tenant, sandbox_id, name=name)
    return JSONResponse(answers.snapshot(kept), 201)


@router.get("/snapshots")
async def list_snapshots(
    plane: Plane,
    tenant: Tenant,
    *,
    sandbox_id: Annotated[str | None, Query(alias="sandboxID")] = None,
    name: str | None = None,
    limit: int | None = None,
    next_token: Annotated[str | None, Query(alias="nextToken")] = None,
) -> Response:
    kept, cursor = await plane.sandboxes.list_snapshots(
        tenant,
        sandbox_id=sandbox_id.partition("-")[0] if sandbox_id else None,
        name=template_reference(name) if name else None,
        limit=page_size(limit),
        cursor=checked_cursor(next_token),
    )
    headers = {"X-Next-Token": cursor} if cursor else {}
    return JSONResponse([answers.snapshot(one) for one in kept], headers=headers)
