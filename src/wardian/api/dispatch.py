"""One HTTP port, two planes: what is for a sandbox goes to the data plane, everything else is for us."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from wardian.api.envd import is_for_a_sandbox

ENVD_PATHS = ("/process.Process/", "/filesystem.Filesystem/")
"""Only the data plane answers these; a client that forgot to name its sandbox is told so there."""


class Dispatch:
    """The server's one ASGI application."""

    def __init__(self, *, control: ASGIApp, data: ASGIApp) -> None:
        self._control, self._data = control, data

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            raise RuntimeError(f"no {scope['type']} here: parts are started by the composition root")
        plane = self._data if scope["type"] == "websocket" or _is_data(scope) else self._control
        await plane(scope, receive, send)


def _is_data(scope: Scope) -> bool:
    path: str = scope["path"]
    return (
        is_for_a_sandbox(dict(scope["headers"]), path, scope["query_string"])
        or path == "/files"
        or path.startswith(ENVD_PATHS)
    )
