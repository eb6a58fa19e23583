"""The HTTP face of the interpreter, as the SDK speaks to it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from . import lines
from .contexts import Context, Contexts, Execution
from .languages import SETTABLE, UnknownLanguage
from .sandbox import EnvironmentTooLarge, owner

KEEPALIVE_S = 5.0
BODY_MAX = 64 * 1024 * 1024


class Refused(Exception):
    """A request that is not carried out: ``status`` and a text."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class Lines(Response):
    """The lines of executions as they come. When the client goes away, what still runs is abandoned."""

    def __init__(self, *executions: Execution) -> None:
        super().__init__(media_type="application/json")
        del self.headers["content-length"]
        self._executions = executions

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        gone = asyncio.create_task(_until_gone(receive))
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            for execution in self._executions:
                await self._relay(execution, send, gone)
            await send({"type": "http.response.body", "body": b""})
        finally:
            gone.cancel()
            for execution in self._executions:
                execution.abandon()

    async def _relay(self, execution: Execution, send: Send, gone: asyncio.Task[None]) -> None:
        line = asyncio.create_task(execution.next_line())
        try:
            while not gone.done():
                await asyncio.wait({line, gone}, timeout=KEEPALIVE_S, return_when=asyncio.FIRST_COMPLETED)
                if gone.done():
                    return
                data = line.result() if line.done() else lines.encode(lines.KEEPALIVE)
                if data is None:
                    return
                await send({"type": "http.response.body", "body": data, "more_body": True})
                if line.done():
                    line = asyncio.create_task(execution.next_line())
        finally:
            line.cancel()


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def build_app(contexts: Contexts) -> Starlette:
    """The application. ``contexts`` are started and stopped with it."""

    async def health(request: Request) -> Response:
        return JSONResponse("OK")

    async def rehearsal(request: Request) -> Response:
        await _body(request)
        owner()
        return Lines(*contexts.rehearse())

    async def execute(request: Request) -> Response:
        body = await _body(request)
        code, env = body.get("code"), body.get("env_vars") or {}
        context_id, language = body.get("context_id"), body.get("language")
        if not isinstance(code, str):
            raise Refused(400, "code: a string is needed")
        if not isinstance(env, dict) or not all(isinstance(value, str) for value in env.values()):
            raise Refused(400, "env_vars: an object of strings is needed")
        if context_id and language:
            raise Refused(400, "Only one of context_id or language can be provided")
        try:
            owner()
        except EnvironmentTooLarge:
            raise Refused(507, "the sandbox's environment is too large to be given to kernels") from None
        context = _known(context_id) if context_id else await contexts.default(language)
        if env and context.language not in SETTABLE:
            raise Refused(400, f"env_vars: a kernel of {context.language} cannot be given variables")
        return Lines(context.begin(code, env))

    async def create(request: Request) -> Response:
        body = await _body(request)
        try:
            return JSONResponse(_facts(await contexts.create(body.get("language"), body.get("cwd"))))
        except OSError as error:
            raise Refused(400, f"cwd: {error}") from error

    async def listed(request: Request) -> Response:
        return JSONResponse([_facts(context) for context in contexts.list()])

    async def restart(request: Request) -> Response:
        await _known(request.path_params["id"]).renew()
        return JSONResponse(None)

    async def remove(request: Request) -> Response:
        await contexts.remove(_known(request.path_params["id"]))
        return JSONResponse(None)

    def _known(context_id: str) -> Context:
        if (context := contexts.find(context_id)) is None:
            raise Refused(404, f"Context {context_id} not found")
        return context

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        await contexts.start()
        try:
            yield
        finally:
            await contexts.stop()

    return Starlette(
        routes=[
            Route("/health", health, methods=["GET"]),
            Route("/rehearsal", rehearsal, methods=["POST"]),
            Route("/execute", execute, methods=["POST"]),
            Route("/contexts", listed, methods=["GET"]),
            Route("/contexts", create, methods=["POST"]),
            Route("/contexts/{id}/restart", restart, methods=["POST"]),
            Route("/contexts/{id}", remove, methods=["DELETE"]),
        ],
        exception_handlers={Refused: _refusal, UnknownLanguage: _unknown_language},
        lifespan=lifespan,
    )


async def _refusal(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    return PlainTextResponse(str(error), error.status)


async def _unknown_language(request: Request, error: Exception) -> Response:
    return PlainTextResponse(str(error), 400)


async def _body(request: Request) -> dict[str, Any]:
    data = bytearray()
    async for chunk in request.stream():
        data += chunk
        if len(data) > BODY_MAX:
            raise Refused(413, f"more than {BODY_MAX} bytes")
    try:
        body = json.loads(data or b"{}")
    except ValueError as error:
        raise Refused(400, f"the body is not JSON: {error}") from error
    if not isinstance(body, dict):
        raise Refused(400, "the body is not an object")
    return body


def _facts(context: Context) -> dict[str, str]:
    return {"id": context.id, "language": context.language, "cwd": context.cwd}
