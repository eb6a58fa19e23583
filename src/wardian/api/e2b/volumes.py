"""Volumes: made, listed, deleted. Their contents are ``wardian.api.volumes``'s."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse

from wardian.api.e2b.body import Body
from wardian.api.e2b.context import ControlPlane, Plane, Tenant
from wardian.model.volume import Volume

router = APIRouter()


class NewVolume(Body):
    name: str


@router.post("/volumes", status_code=201)
async def create(plane: Plane, tenant: Tenant, body: NewVolume) -> Response:
    made = await plane.volumes.create(tenant, body.name)
    return JSONResponse(_with_token(plane, made), 201)


@router.get("/volumes")
async def list_volumes(plane: Plane, tenant: Tenant) -> Response:
    return JSONResponse([_told(each) for each in await plane.volumes.list(tenant)])


@router.get("/volumes/{volume_id}")
async def get(plane: Plane, tenant: Tenant, volume_id: str) -> Response:
    return JSONResponse(_with_token(plane, await plane.volumes.get(tenant, volume_id)))


@router.delete("/volumes/{volume_id}", status_code=204)
async def delete(plane: Plane, tenant: Tenant, volume_id: str) -> None:
    """Delete a volume with its files; refused while a sandbox mounts it."""
    await plane.volumes.delete(tenant, volume_id)


def _told(volume: Volume) -> dict[str, Any]:
    """``Volume``."""
    return {"volumeID": volume.id, "name": volume.name}


def _with_token(plane: ControlPlane, volume: Volume) -> dict[str, Any]:
    """``VolumeAndToken``, for the tenant who owns it."""
    return _told(volume) | {"token": plane.volumes.token(volume)}
