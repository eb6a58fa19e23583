"""Secrets. Their values come in and never go out again: no answer, error or log line here holds one."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Response
from fastapi.responses import JSONResponse
from pydantic import Field

from wardian.api.e2b.answers import timestamp
from wardian.api.e2b.body import Body
from wardian.api.e2b.context import Plane, Tenant
from wardian.api.e2b.listing import checked_cursor, page_size
from wardian.model.errors import Invalid
from wardian.model.secret import Secret, checked_name

router = APIRouter()


class SecretValue(Body):
    value: Annotated[str, Field(repr=False)]
    metadata: dict[str, str] | None = None


class NewSecret(SecretValue):
    name: str


@router.post("/secrets", status_code=201)
async def create(plane: Plane, tenant: Tenant, body: NewSecret) -> Response:
    """Keep a new secret; its value is version 1."""
    made = await plane.vault.create(tenant, body.name, body.value, body.metadata or {})
    return JSONResponse(_told(made), 201)


@router.get("/secrets")
async def list_secrets(
    plane: Plane,
    tenant: Tenant,
    *,
    limit: int | None = None,
    next_token: Annotated[str | None, Query(alias="nextToken")] = None,
) -> Response:
    """A page by name; the token to the next page is the last name of this one."""
    size = page_size(limit)
    cursor = checked_cursor(next_token)
    found = await plane.vault.list(tenant, after=cursor and _name_in(cursor), limit=size + 1)
    headers = {"X-Next-Token": _token_of(found[size - 1].name)} if len(found) > size else {}
    return JSONResponse([_told(each) for each in found[:size]], headers=headers)


@router.get("/secrets/{reference}")
async def describe(plane: Plane, tenant: Tenant, reference: str) -> Response:
    return JSONResponse(_told(await plane.vault.describe(tenant, reference)))


@router.post("/secrets/{reference}")
async def update(plane: Plane, tenant: Tenant, reference: str, body: SecretValue) -> Response:
    """Make a value the next version; metadata, when given, replaces what was there."""
    return JSONResponse(_told(await plane.vault.update(tenant, reference, body.value, body.metadata)))


@router.delete("/secrets/{reference}", status_code=204)
async def remove(plane: Plane, tenant: Tenant, reference: str) -> None:
    """Forget a secret with all its versions."""
    await plane.vault.remove(tenant, reference)
    await plane.bridge.grants.reload()  # its grants went with it


def _told(secret: Secret) -> dict[str, Any]:
    """``Secret``."""
    return {
        "secretID": secret.id,
        "name": secret.name,
        "currentVersion": secret.version,
        "metadata": dict(secret.metadata),
        "createdAt": timestamp(secret.created_at),
        "updatedAt": timestamp(secret.updated_at),
    }


def _token_of(name: str) -> str:
    return name.encode().hex()  # a header takes no more than ASCII


def _name_in(token: str) -> str:
    try:
        return checked_name(bytes.fromhex(token).decode())
    except ValueError:
        raise Invalid("Invalid next token", code="bad_cursor") from None
