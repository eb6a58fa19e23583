"""Templates: looked at, listed, published and deleted."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import unquote

from fastapi import APIRouter, Query, Response
from fastapi.responses import JSONResponse

from wardian.api.e2b import answers
from wardian.api.e2b.body import Body, template_reference
from wardian.api.e2b.context import Plane, TemplateRef, Tenant
from wardian.api.e2b.listing import checked_cursor, page_size
from wardian.model.errors import NotFound
from wardian.sandboxes import cursors

router = APIRouter()

NextToken = Annotated[str | None, Query(alias="nextToken")]


class TemplateUpdate(Body):
    public: bool | None = None


@router.get("/templates")
async def list_templates(plane: Plane, tenant: Tenant) -> Response:
    """All of the tenant's templates, and the house's."""
    return JSONResponse([answers.template(*known) for known in await plane.templates.visible(tenant)])


@router.get("/v2/templates")
async def page_of_templates(
    plane: Plane, tenant: Tenant, *, limit: int | None = None, next_token: NextToken = None
) -> Response:
    """The same, page by page."""
    most = page_size(limit)
    after = cursors.decode(checked_cursor(next_token))
    found = await plane.templates.visible(tenant, after=after, limit=most + 1)
    headers = {}
    if len(found) > most:
        last = found[most - 1][0].template
        headers["X-Next-Token"] = cursors.encode(last.created_at, last.id)
    return JSONResponse([answers.template(*known) for known in found[:most]], headers=headers)


@router.get("/default-templates")
async def default_templates(plane: Plane, tenant: Tenant) -> Response:
    known = await plane.templates.visible(tenant)
    return JSONResponse([answers.template(*one) for one in known if one[0].template.tenant is None])


@router.get("/templates/aliases/{alias:path}")
async def by_alias(plane: Plane, tenant: Tenant, alias: str) -> Response:
    """What a name means. Another tenant's is answered like one that does not exist."""
    known = await plane.templates.get(tenant, template_reference(unquote(alias)))
    return JSONResponse({"templateID": known.id, "public": known.public})


@router.get("/templates/{template}")
async def get(
    plane: Plane,
    tenant: Tenant,
    template: TemplateRef,
    *,
    limit: int | None = None,
    next_token: NextToken = None,
) -> Response:
    """A template and a page of its builds, newest first."""
    most = page_size(limit)
    after = cursors.decode(checked_cursor(next_token))
    listed, newest, builds = await plane.templates.with_builds(tenant, template, after=after, limit=most + 1)
    shown = builds[:most]
    headers = {}
    if len(builds) > most:
        headers["X-Next-Token"] = cursors.encode(shown[-1].created_at, shown[-1].id)
    return JSONResponse(answers.template_with_builds(listed, newest, shown), headers=headers)


@router.patch("/templates/{template}")
@router.patch("/v2/templates/{template}")
async def update(plane: Plane, tenant: Tenant, template: TemplateRef, body: TemplateUpdate) -> Response:
    """Publish a template, or keep it to its owner again."""
    known = await plane.templates.get(tenant, template)
    if body.public is not None:
        known = await plane.templates.publish(tenant, template, public=body.public)
    return JSONResponse({"names": list(known.names)})


@router.delete("/templates/{reference:path}", status_code=204)
async def delete(plane: Plane, tenant: Tenant, reference: str) -> None:
    """Delete a template, or a snapshot: to a client the two are one. Ids may be encoded once or twice."""
    wanted = template_reference(unquote(reference))
    try:
        await plane.sandboxes.delete_snapshot(tenant, wanted)
    except NotFound:
        await plane.builds.remove_template(tenant, wanted)
