"""Templates, to be read. Building them is not supported yet, and says so."""

from __future__ import annotations

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse

from wardian.api.e2b import answers
from wardian.api.e2b.bodies import template_reference
from wardian.api.e2b.context import ControlPlane, Plane, Tenant
from wardian.model.errors import NotFound, Unsupported
from wardian.model.template import Template

router = APIRouter()


@router.get("/templates")
@router.get("/v2/templates")
async def list_templates(plane: Plane, tenant: Tenant) -> Response:
    return JSONResponse([answers.template(known) for known in await plane.templates.visible(tenant)])


@router.get("/default-templates")
async def default_templates(plane: Plane, tenant: Tenant) -> Response:
    known = await plane.templates.visible(tenant)
    return JSONResponse([answers.template(one) | {"isDefault": True} for one in known if one.tenant is None])


@router.get("/templates/aliases/{alias:path}")
async def by_alias(plane: Plane, tenant: Tenant, alias: str) -> Response:
    known = await _find(plane, tenant, alias)
    return JSONResponse({"templateID": known.id, "public": known.tenant is None})


@router.get("/templates/{template_id}")
async def get(plane: Plane, tenant: Tenant, template_id: str) -> Response:
    return JSONResponse(answers.template_with_builds(await _find(plane, tenant, template_id)))


async def _find(plane: ControlPlane, tenant: str, reference: str) -> Template:
    known = await plane.templates.find(tenant, template_reference(reference))
    if known is None:
        raise NotFound(f"template '{reference[:128]}' not found", code="template_not_found")
    return known


async def unsupported() -> None:
    raise Unsupported(
        "building templates is not supported", code="templates_unsupported", hint="use the template 'base'"
    )


for _method, _path in (
    ("POST", "/templates"),
    ("POST", "/v2/templates"),
    ("POST", "/v3/templates"),
    ("POST", "/templates/tags"),
    ("DELETE", "/templates/tags"),
    ("POST", "/templates/{template_id}"),
    ("PATCH", "/templates/{template_id}"),
    ("PATCH", "/v2/templates/{template_id}"),
    ("GET", "/templates/{template_id}/files/{digest}"),
    ("GET", "/templates/{template_id}/tags"),
    ("GET", "/templates/{template_id}/tags/{rest:path}"),
    ("POST", "/templates/{template_id}/builds/{build_id}"),
    ("POST", "/v2/templates/{template_id}/builds/{build_id}"),
    ("GET", "/templates/{template_id}/builds/{build_id}/status"),
    ("GET", "/templates/{template_id}/builds/{build_id}/logs"),
):
    router.add_api_route(_path, unsupported, methods=[_method], include_in_schema=False)
