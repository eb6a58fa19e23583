"""The control plane, put together."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from wardian.api.auth import Keyring
from wardian.api.e2b import (
    absent,
    builds,
    logs,
    metrics,
    network,
    sandboxes,
    service,
    snapshots,
    tags,
    templates,
)
from wardian.api.e2b.context import ControlPlane
from wardian.api.e2b.front import Front
from wardian.api.e2b.uploads import Door
from wardian.api.errors import http_status, rest_body, rest_headers
from wardian.model.errors import Invalid, NotFound, WardianError

log = logging.getLogger(__name__)


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
    parts = (service, metrics, logs, network, sandboxes, tags, builds, templates, snapshots, absent)
    for router in (*(part.router for part in parts), *more):
        app.router.routes.extend(router.routes)
    app.add_exception_handler(WardianError, _on_refusal)
    app.add_exception_handler(RequestValidationError, _on_malformed)
    app.add_exception_handler(HTTPException, _on_no_route)
    app.add_exception_handler(Exception, _on_bug)
    return Door(Front(app, keyring), plane.builds.uploads)


def _answer(error: WardianError) -> Response:
    return JSONResponse(rest_body(error), http_status(error), headers=rest_headers(error))


async def _on_refusal(request: Request, error: Exception) -> Response:
    assert isinstance(error, WardianError)
    return _answer(error)


async def _on_malformed(request: Request, error: Exception) -> Response:
    """The first thing that is wrong with a request's body or query, in one line."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"] if part not in ("body", "query"))
    message = "the body is not JSON" if first["type"] == "json_invalid" else first["msg"]
    return _answer(Invalid(f"{place}: {message}" if place and "JSON" not in message else message))


async def _on_no_route(request: Request, error: Exception) -> Response:
    """What the framework itself says no to: an unknown path, a wrong method, a body that cannot be read."""
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        return _answer(NotFound(f"no such endpoint: {request.url.path[:128]}", code="no_such_endpoint"))
    if error.status_code == 405:
        return _answer(Invalid(f"{request.method} is not allowed here", code="method_not_allowed"))
    return _answer(Invalid(str(error.detail)))


async def _on_bug(request: Request, error: Exception) -> Response:
    """Our own fault. The traceback goes to the log, not to the caller."""
    log.error("%s %s failed", request.method, request.url.path)
    return _answer(WardianError("internal error"))
