"""Snapshots in our own words: how large one is; search it for secrets, and read what was attested of it."""

from __future__ import annotations

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse

from wardian.api.e2b.context import Plane, Tenant
from wardian.sandboxes.inspecting import SnapshotInspector


def router_of(inspector: SnapshotInspector) -> APIRouter:
    """The routes, for whoever searches."""
    router = APIRouter(prefix="/wardian/snapshots")

    @router.get("/{snapshot}")
    async def show(plane: Plane, tenant: Tenant, snapshot: str) -> Response:
        """A kept snapshot: how large it is, and what it takes on the server's disk now."""
        row = await plane.sandboxes.get_snapshot(tenant, snapshot)
        told = {
            "snapshotID": row.id,
            "names": list(row.names),
            "memory": row.has_memory,
            "createdAt": row.created_at,
            "digest": row.digest,
            "sizeBytes": row.size_bytes,
            "storedBytes": await plane.sandboxes.stored_bytes(row),
        }
        return JSONResponse(told)

    @router.post("/{snapshot}/scan")
    async def scan(plane: Plane, tenant: Tenant, snapshot: str) -> Response:
        """Search a kept snapshot now; the answer is the signed attestation, whatever was found."""
        row, image = await plane.sandboxes.open_snapshot(tenant, snapshot)
        seen = await inspector.search(tenant, row.id, image)
        return JSONResponse(dict(await seen.sign(row.digest)))

    @router.get("/{snapshot}/attestation")
    async def attestation(plane: Plane, tenant: Tenant, snapshot: str) -> Response:
        """The newest attestation of a kept snapshot."""
        row = await plane.sandboxes.get_snapshot(tenant, snapshot)
        return JSONResponse(dict(await inspector.attestation(row.id)))

    return router
