"""How an application of ours answers what it does not do: every error as JSON with a stable code."""

from __future__ import annotations

import logging

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from wardian.api.errors import http_status, rest_body, rest_headers
from wardian.model.errors import Invalid, NotFound, WardianError

log = logging.getLogger(__name__)


def answer_errors(app: FastAPI) -> None:
    """Have every error of ``app`` answered so."""
    app.add_exception_handler(WardianError, _on_refusal)
    app.add_exception_handler(RequestValidationError, _on_malformed)
    app.add_exception_handler(HTTPException, _on_no_route)
    app.add_exception_handler(Exception, _on_bug)


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
