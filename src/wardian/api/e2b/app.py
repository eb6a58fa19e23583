"""The control plane, put together."""

from __future__ import annotations

from collections.abc import Iterable

from fastapi import APIRouter, FastAPI
from starlette.types import ASGIApp

from wardian.api.auth import Keyring
from wardian.api.e2b import (
    absent,
    builds,
    logs,
    metrics,
    network,
    sandboxes,
    secrets,
    service,
    snapshots,
    tags,
    templates,
    volumes,
)
from wardian.api.e2b.context import ControlPlane
from wardian.api.e2b.front import Front
from wardian.api.e2b.uploads import Door
from wardian.api.refusals import answer_errors


def build_control_plane(plane: ControlPlane, keyring: Keyring, *, more: Iterable[APIRouter] = ()) -> ASGIApp:
    """The ASGI application of the control plane, with ``more`` routes than the protocol has.

    Its parts are started and stopped by whoever made them.
    """
    app = FastAPI(
        title="Wardian", openapi_url="/openapi.json", docs_url=None, redoc_url=None, redirect_slashes=False
    )
    app.state.plane = plane
    # More specific paths come first: the routers are asked in this order.
    # Taken over as they are: `include_router` would analyse each again, while its first request waits.
    parts = (
        *(service, metrics, logs, network, sandboxes, tags, builds, templates, snapshots),
        *(secrets, volumes, absent),
    )
    for router in (*(part.router for part in parts), *more):
        app.router.routes.extend(router.routes)
    answer_errors(app)
    return Door(Front(app, keyring), plane.builds.uploads)
