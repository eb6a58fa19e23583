"""Answers about the service itself."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from wardian.api.auth import key_in
from wardian.api.e2b.context import Tenant

router = APIRouter()


@router.get("/health")
async def health() -> Response:
    """Whether requests are served. Needs no key."""
    return JSONResponse({"status": "ok"})


@router.get("/teams")
async def teams(request: Request, tenant: Tenant) -> Response:
    """The caller's only team. Keys are not kept, so the one told is the one that asked."""
    key = key_in(dict(request.scope["headers"]), bearer=True)
    return JSONResponse([{"teamID": tenant, "name": tenant, "apiKey": key, "isDefault": True}])
