"""What is different in the files of two builds: ``GET /wardian/differences?old=…&new=…``."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

from fastapi import APIRouter, Query, Response
from fastapi.responses import JSONResponse

from wardian.api.e2b.body import template_reference
from wardian.api.e2b.context import Plane, Tenant
from wardian.builds.comparing import PATHS_MAX

router = APIRouter(prefix="/wardian")


@router.get("/differences")
async def differences(
    plane: Plane,
    tenant: Tenant,
    *,
    old: str,
    new: str,
    paths: Annotated[int, Query(ge=0, le=PATHS_MAX)] = 100,
) -> Response:
    """Counts, the first ``paths`` of the paths that differ, and every package in another version."""
    editions, found = await plane.builds.compare(tenant, template_reference(old), template_reference(new))
    told = {
        "old": editions[0].build.id,
        "new": editions[1].build.id,
        "counts": {how.value: count for how, count in found.counts.items()},
        "paths": [asdict(change) for change in found.changes[:paths]],
        "directories": [asdict(count) for count in found.directories],
        "packages": {
            kind: [asdict(version) for version in versions] for kind, versions in found.packages.items()
        },
    }
    return JSONResponse(told)
