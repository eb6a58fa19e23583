"""Building templates: ask for a build, upload its files, start it, watch it.

Every version of the protocol that is still spoken comes down to these steps; they differ in what the request
for a build says and in how much of it the answer repeats.
"""

from __future__ import annotations

import re
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse
from pydantic import Field

from wardian.api.e2b import answers
from wardian.api.e2b.body import Body
from wardian.api.e2b.context import ControlPlane, Plane, TemplateRef, Tenant
from wardian.api.e2b.listing import LIMIT_MAX
from wardian.api.e2b.steps import BuildStart
from wardian.api.e2b.uploads import UPLOAD_PATH
from wardian.builds.logs import LEVELS
from wardian.model.build import BuildStatus
from wardian.model.errors import Invalid, Unsupported
from wardian.model.resources import Resources
from wardian.model.template import Build, Listed, Template

router = APIRouter()

_FILES_HASH = re.compile(r"[0-9a-f]{64}")
REASON_LINES = 20
CURSOR_MAX = 1 << 53
"""Of a log's cursor, in milliseconds."""


class NewBuild(Body):
    """A request for a build. ``name`` may hold a tag; older clients call it ``alias``."""

    name: str | None = None
    alias: str | None = None
    tags: Annotated[list[str], Field(max_length=64)] | None = None
    teamID: str | None = None
    cpuCount: int | None = None
    memoryMB: int | None = None
    minFreeDiskMb: int | None = None

    def resources(self) -> Resources:
        """What sandboxes of the template get. Raises :class:`Invalid`."""
        usual = Resources()
        return Resources(
            cpu_count=self.cpuCount or usual.cpu_count,
            memory_mib=self.memoryMB or usual.memory_mib,
            # The disk of a sandbox is what it may write on top of its image: all of it is free.
            disk_mib=max(usual.disk_mib, self.minFreeDiskMb or 0),
            processes_max=usual.processes_max,
        )


@router.post("/v3/templates", status_code=202)
async def request_build(plane: Plane, tenant: Tenant, body: NewBuild) -> Response:
    """A new build, of a new template if none has this name."""
    return accepted(*await ask(plane, tenant, body))


@router.post("/v2/templates", status_code=202)
async def request_build_v2(plane: Plane, tenant: Tenant, body: NewBuild) -> Response:
    """The same, as clients before tags ask for it."""
    template, build = await ask(plane, tenant, body)
    return JSONResponse(answers.template(Listed(template, 1), build), 202)


def accepted(template: Template, build: Build) -> Response:
    """The answer to a request for a build."""
    facts = {
        "templateID": template.id,
        "buildID": build.id,
        "public": template.public,
        "names": list(template.names),
        "aliases": [template.alias] if template.alias else [],
        "tags": list(build.tags),
    }
    return JSONResponse(facts, 202)


async def ask(
    plane: ControlPlane, tenant: str, body: NewBuild, *, house: bool = False
) -> tuple[Template, Build]:
    """The build that a body asks for, of the tenant's own template or of the house's."""
    name = body.name or body.alias
    if not name:
        raise Invalid("name is required", code="name_missing")
    return await plane.builds.request(
        tenant, name, tags=body.tags or (), resources=body.resources(), house=house
    )


@router.get("/templates/{template}/files/{digest}", status_code=201)
async def upload_address(
    plane: Plane, tenant: Tenant, request: Request, template: TemplateRef, digest: str
) -> Response:
    """Whether files with this hash are here, and an address where they can be put: once, without a key."""
    if not _FILES_HASH.fullmatch(digest):
        raise Invalid("a files hash is 64 hexadecimal digits, in lower case", code="bad_files_hash")
    known = await plane.builds.own(tenant, template)
    present = plane.builds.uploads.find(known.id, digest) is not None
    ticket = plane.builds.uploads.ticket(known.id, digest)
    url = f"{str(request.base_url).rstrip('/')}{UPLOAD_PATH}{ticket}"
    return JSONResponse({"present": present, "url": url}, 201)


@router.post("/v2/templates/{template}/builds/{build_id}", status_code=202)
async def start(
    plane: Plane, tenant: Tenant, template: TemplateRef, build_id: str, body: BuildStart
) -> Response:
    """Start a build that waits. Its status is ``building`` from here on."""
    files, digests = await plane.builds.files(tenant, template, body.files())
    plan = body.plan(digests)
    await plane.builds.start(tenant, template, build_id, plan, files)
    return Response(status_code=202)


@router.get("/templates/{template}/builds/{build_id}/status")
async def status(
    plane: Plane,
    tenant: Tenant,
    template: TemplateRef,
    build_id: str,
    *,
    offset: Annotated[int, Query(alias="logsOffset", ge=0)] = 0,
    limit: Annotated[int, Query(ge=0, le=LIMIT_MAX)] = LIMIT_MAX,
    level: str | None = None,
) -> Response:
    """How far a build is, and what it said from the line ``logsOffset`` on."""
    build = await plane.builds.status(tenant, template, build_id)
    lines = await plane.builds.lines(build, level=_level(level))
    facts: dict[str, Any] = {
        "templateID": build.template_id,
        "buildID": build.id,
        "status": build.status.value,
        "logs": [],
        "logEntries": [answers.build_line(line) for line in lines[offset : offset + limit]],
    }
    if build.status is BuildStatus.ERROR and build.failure is not None:
        facts["reason"] = answers.build_failure(build.failure, lines[-REASON_LINES:])
    return JSONResponse(facts)


@router.get("/templates/{template}/builds/{build_id}/logs")
async def logs(
    plane: Plane,
    tenant: Tenant,
    template: TemplateRef,
    build_id: str,
    *,
    cursor: Annotated[int | None, Query(ge=0, le=CURSOR_MAX)] = None,
    limit: Annotated[int, Query(ge=0, le=LIMIT_MAX)] = LIMIT_MAX,
    direction: str = "forward",
    level: str | None = None,
    source: str | None = None,
) -> Response:
    """What a build said, from the moment ``cursor`` (milliseconds) on, or back from it.

    There is one source of lines here; ``source`` is for servers that have more.
    """
    if direction not in ("forward", "backward"):
        raise Invalid(f"direction must be forward or backward, not {direction[:16]!r}", code="bad_direction")
    if source not in (None, "", "temporary", "persistent"):
        raise Invalid(f"source must be temporary or persistent, not {source[:16]!r}", code="bad_source")
    build = await plane.builds.status(tenant, template, build_id)
    lines = await plane.builds.lines(build, level=_level(level))
    if direction == "backward":
        lines = [line for line in reversed(lines) if cursor is None or line.at <= cursor * 1000 + 999]
    elif cursor is not None:
        lines = [line for line in lines if line.at >= cursor * 1000]
    return JSONResponse({"logs": [answers.build_line(line) for line in lines[:limit]]})


def _level(level: str | None) -> str | None:
    if level in (None, ""):
        return None
    if level not in LEVELS:
        raise Invalid(f"level must be one of {', '.join(LEVELS)}, not {level[:16]!r}", code="bad_level")
    return level


async def _first_version() -> None:
    raise Unsupported(
        "building from a Dockerfile on the server is not supported by this endpoint",
        code="first_build_version",
        hint="use the SDK's Template class, `e2b template create`, or `wardian template build`",
    )


for _path in ("/templates", "/templates/{template}", "/templates/{template}/builds/{build_id}"):
    router.add_api_route(_path, _first_version, methods=["POST"], include_in_schema=False)
