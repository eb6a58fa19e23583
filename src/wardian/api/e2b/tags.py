"""Tags: names of builds that move. The newest assignment of a tag is the one in force; the older ones are its
history."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Response
from fastapi.responses import JSONResponse
from pydantic import Field

from wardian.api.e2b import answers
from wardian.api.e2b.body import Body, template_reference
from wardian.api.e2b.context import Plane, TemplateRef, Tenant
from wardian.api.e2b.listing import checked_cursor
from wardian.model.errors import Invalid
from wardian.model.template import Assignment, Build, checked_tag
from wardian.sandboxes import cursors

router = APIRouter()

ASSIGNMENTS_MAX = 100
SORTS = ("latest_asc", "latest_desc", "name_asc", "name_desc")

Tags = Annotated[list[str], Field(min_length=1, max_length=64)]


class AssignedTags(Body):
    target: str
    tags: Tags


class RemovedTags(Body):
    name: str
    tags: Tags


@router.post("/templates/tags", status_code=201)
async def assign(plane: Plane, tenant: Tenant, body: AssignedTags) -> Response:
    """Give tags to the build that ``target`` ("name:tag") means."""
    tags = [checked_tag(tag) for tag in body.tags]
    build = await plane.templates.assign(tenant, body.target, tags)
    await plane.sandboxes.keep_house_warm()
    return JSONResponse({"tags": tags, "buildID": build.id}, 201)


@router.delete("/templates/tags", status_code=204)
async def remove(plane: Plane, tenant: Tenant, body: RemovedTags) -> None:
    """Take tags away. The builds they named stay, under their ids and other tags."""
    await plane.templates.unassign(
        tenant, template_reference(body.name), [checked_tag(tag) for tag in body.tags]
    )


@router.get("/templates/{template}/tags")
async def tags(plane: Plane, tenant: Tenant, template: TemplateRef) -> Response:
    """The tags of a template and the builds they name now."""
    told = [
        {"tag": each.tag, "buildID": each.build_id, "createdAt": answers.timestamp(each.assigned_at)}
        for each in await plane.templates.tags(tenant, template)
    ]
    return JSONResponse(told)


@router.get("/templates/{template}/tags/count")
async def count(plane: Plane, tenant: Tenant, template: TemplateRef) -> Response:
    return JSONResponse({"total": len(await plane.templates.tags(tenant, template))})


@router.get("/templates/{template}/tags/exists")
async def exists(plane: Plane, tenant: Tenant, template: TemplateRef, tag: str) -> Response:
    wanted = checked_tag(tag)
    found = any(each.tag == wanted for each in await plane.templates.tags(tenant, template))
    return JSONResponse({"exists": found, "normalizedTag": wanted})


@router.get("/templates/{template}/tags/groups")
async def groups(
    plane: Plane,
    tenant: Tenant,
    template: TemplateRef,
    *,
    assignment_limit: Annotated[int, Query(alias="assignmentLimit", ge=1, le=ASSIGNMENTS_MAX)] = 6,
    tags_limit: Annotated[int, Query(alias="tagsLimit", ge=1, le=ASSIGNMENTS_MAX)] = 25,
    tags_cursor: Annotated[str | None, Query(alias="tagsCursor")] = None,
    search: str = "",
    sort: str = "latest_desc",
) -> Response:
    """Tags with the newest of their assignments, tag by tag."""
    if sort not in SORTS:
        raise Invalid(f"sort must be one of {', '.join(SORTS)}", code="bad_sort")
    grouped: dict[str, list[tuple[Assignment, Build]]] = {}
    for each in await plane.templates.tag_history(tenant, template):
        if search.lower() in each[0].tag:
            grouped.setdefault(each[0].tag, []).append(each)
    names = sorted(grouped)
    if sort.startswith("latest"):
        names.sort(key=lambda tag: grouped[tag][0][0].assigned_at)
    if sort.endswith("desc"):
        names.reverse()
    begin = _position(tags_cursor)
    shown = names[begin : begin + tags_limit]
    more = begin + tags_limit < len(names)
    told = {
        "tags": [
            {
                "tag": tag,
                "assignments": [answers.assignment(*each) for each in grouped[tag][:assignment_limit]],
                "hasMore": len(grouped[tag]) > assignment_limit,
            }
            for tag in shown
        ],
        "nextCursor": cursors.encode(begin + tags_limit, "tags") if more else None,
    }
    return JSONResponse(told)


@router.get("/templates/{template}/tags/{tag}/assignments")
async def assignments(
    plane: Plane,
    tenant: Tenant,
    template: TemplateRef,
    tag: str,
    *,
    cursor: str | None = None,
    limit: Annotated[int, Query(ge=1, le=ASSIGNMENTS_MAX)] = 50,
) -> Response:
    """The history of a tag, newest first."""
    found = await plane.templates.tag_history(tenant, template, checked_tag(tag))
    begin = _position(cursor)
    told: dict[str, Any] = {
        "data": [answers.assignment(*each) for each in found[begin : begin + limit]],
        "nextCursor": cursors.encode(begin + limit, "assignments") if begin + limit < len(found) else None,
    }
    return JSONResponse(told)


def _position(cursor: str | None) -> int:
    """Where a page begins. Raises :class:`Invalid`."""
    after = cursors.decode(checked_cursor(cursor))
    return 0 if after is None else max(0, after[0])
