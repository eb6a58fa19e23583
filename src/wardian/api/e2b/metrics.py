"""What a sandbox used."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Response
from fastapi.responses import JSONResponse

from wardian.api.e2b import answers
from wardian.api.e2b.context import Plane, SandboxId, Tenant
from wardian.model.errors import Invalid, NotFound

router = APIRouter()

SANDBOXES_MAX = 100
SECONDS_MAX = 2**40


@router.get("/sandboxes/metrics")
async def metrics_of_many(plane: Plane, tenant: Tenant, sandbox_ids: Annotated[str, Query()]) -> Response:
    """The newest sample of each sandbox; those that are gone are left out."""
    wanted = [one.partition("-")[0] for one in sandbox_ids.split(",") if one]
    if len(wanted) > SANDBOXES_MAX:
        raise Invalid(f"more than {SANDBOXES_MAX} sandboxes", code="too_many_sandboxes")
    told = {}
    for sandbox_id in wanted:
        try:
            samples = await plane.sandboxes.metrics(tenant, sandbox_id, None, None)
        except NotFound:
            continue
        if samples:
            told[sandbox_id] = answers.metric(samples[-1])
    return JSONResponse({"sandboxes": told})


@router.get("/sandboxes/{sandbox_id}/metrics")
async def metrics(
    plane: Plane,
    tenant: Tenant,
    sandbox_id: SandboxId,
    start: Annotated[int | None, Query(ge=0, le=SECONDS_MAX)] = None,
    end: Annotated[int | None, Query(ge=0, le=SECONDS_MAX)] = None,
) -> Response:
    """The samples between two moments (seconds since the epoch, both included)."""
    samples = await plane.sandboxes.metrics(
        tenant,
        sandbox_id,
        None if start is None else start * 1_000_000,
        None if end is None else end * 1_000_000 + 999_999,
    )
    return JSONResponse([answers.metric(sample) for sample in samples])
