"""Builds in our own words: start one from a plan and a lock, cancel it, and read what it was made of.

Asking for a build, uploading its files and watching it are the E2B API's. The files that a plan's COPY steps
name (``context:<hash>``) are uploaded under that hash.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from wardian.api.e2b.answers import timestamp
from wardian.api.e2b.body import template_reference
from wardian.api.e2b.builds import NewBuild, accepted, ask
from wardian.api.e2b.context import Plane, TemplateRef, Tenant
from wardian.builds.plans import lock_of, plan_of
from wardian.model.build import Plan, StepKind
from wardian.model.errors import Invalid
from wardian.model.isolation import Isolation
from wardian.model.template import Edition
from wardian.sandboxes.templates import unknown

router = APIRouter(prefix="/wardian")

_CONTEXT = re.compile(r"context:([0-9a-f]{64})")


@router.post("/house/templates", status_code=202)
async def request_for_house(plane: Plane, tenant: Tenant, body: NewBuild) -> Response:
    """A new build of a template of the house, which every tenant may use: for the server's operator.

    What follows (files, start, status) is the same as for a template of one's own.
    """
    return accepted(*await ask(plane, tenant, body, house=True))


@router.post("/templates/{template}/builds/{build_id}", status_code=202)
async def start(
    plane: Plane, tenant: Tenant, template: TemplateRef, build_id: str, request: Request
) -> Response:
    """Start a build that waits from ``{"plan": …, "lock": …}``; the lock may be left out."""
    plan, lock = _parts(await request.body())
    asked = plan_of(plan)
    files, digests = await plane.builds.files(tenant, template, _contexts(asked))
    await plane.builds.start(
        tenant,
        template,
        build_id,
        _with_digests(asked, digests),
        files,
        lock=None if lock is None else lock_of(lock),
    )
    return Response(status_code=202)


@router.delete("/templates/{template}/builds/{build_id}", status_code=204)
async def cancel(plane: Plane, tenant: Tenant, template: TemplateRef, build_id: str) -> None:
    """End a build that waits or is under way."""
    await plane.builds.cancel(tenant, template, build_id)


@router.get("/builds/{reference:path}")
async def get(plane: Plane, tenant: Tenant, reference: str) -> Response:
    """The ready build that a reference (``[namespace/]alias[:tag]``, or a build's id) means."""
    edition = await plane.templates.find(tenant, template_reference(reference))
    if edition is None:
        raise unknown(reference)
    return JSONResponse(_told(edition, mine=plane.templates.owns(tenant, edition.template)))


def _parts(body: bytes) -> tuple[bytes, bytes | None]:
    try:
        parts = json.loads(body)
        plan, lock = parts.pop("plan"), parts.pop("lock", None)
        if parts:
            raise ValueError
    except (ValueError, KeyError, AttributeError, RecursionError):
        raise Invalid('the body is {"plan": …, "lock": …}, and nothing else', code="bad_body") from None
    return json.dumps(plan).encode(), None if lock is None else json.dumps(lock).encode()


def _contexts(plan: Plan) -> Mapping[str, str]:
    """The hashes that the plan's COPY steps name, and what each is shown as."""
    found: dict[str, str] = {}
    for stage in plan.stages:
        for step in stage.steps:
            if (match := _CONTEXT.fullmatch(step.files)) is not None:
                found[match[1]] = step.text or step.args[0]
            elif step.kind is StepKind.COPY and not step.files.startswith("stage:"):
                raise Invalid(
                    "a COPY step needs files: context:<64 hex digits> or stage:<name>", code="bad_plan"
                )
    return found


def _with_digests(plan: Plan, digests: Mapping[str, str]) -> Plan:
    """The plan with the client's hashes replaced by the digests of what was uploaded under them."""

    def named(files: str) -> str:
        match = _CONTEXT.fullmatch(files)
        return files if match is None else f"context:{digests[match[1]]}"

    stages = (
        replace(stage, steps=tuple(replace(step, files=named(step.files)) for step in stage.steps))
        for stage in plan.stages
    )
    return replace(plan, stages=tuple(stages))


def _told(edition: Edition, *, mine: bool) -> dict[str, Any]:
    """A build as JSON. What it was asked is its owner's business alone: commands may hold secrets."""
    template, build = edition.template, edition.build
    return {
        "templateID": template.id,
        "names": list(template.names),
        "buildID": build.id,
        "createdAt": timestamp(build.created_at),
        "tree": build.tree,
        "image": build.root_digest,
        "snapshotID": build.snapshot_id,
        "resources": asdict(build.resources),
        "surroundings": asdict(build.surroundings),
        "start": build.start,
        "ready": build.ready,
        "isolation": build.isolation or Isolation.AUTO,
        "plan": build.plan if mine else None,
        "lock": asdict(build.lock) if build.lock is not None and mine else None,
    }
