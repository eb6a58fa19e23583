"""One HTTP port, three planes: what is for a sandbox goes to the data plane, the rest is for us: the contents
of volumes, and everything else."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.types import ASGIApp, Receive, Scope, Send

from wardian.api.envd import is_for_a_sandbox
from wardian.api.envd.access import TOKEN_HEADER
from wardian.api.envd.routing import ENVD_PORT, PORT_HEADER

ENVD_PATHS = ("/process.Process/", "/filesystem.Filesystem/")
"""Only the data plane answers these; a client that forgot to name its sandbox is told so there."""

CONTROL_PATHS = ("/sandboxes/", "/v2/sandboxes/")
CONTENT_PATHS = "/volumecontent/"


class Dispatch:
    """The server's one ASGI application."""

    def __init__(self, *, control: ASGIApp, data: ASGIApp, content: ASGIApp) -> None:
        self._control, self._data, self._content = control, data, content

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            raise RuntimeError(f"no {scope['type']} here: parts are started by the composition root")
        await self._plane(scope)(scope, receive, send)

    def _plane(self, scope: Scope) -> ASGIApp:
        if scope["type"] == "websocket" or is_data(scope):
            return self._data
        return self._content if scope["path"].startswith(CONTENT_PATHS) else self._control


def is_data(scope: Scope) -> bool:
    """Whether a request is for the data plane."""
    path: str = scope["path"]
    headers = dict(scope["headers"])
    if _is_misaddressed(headers, path):
        return False
    return (
        is_for_a_sandbox(headers, path, scope["query_string"])
        or TOKEN_HEADER in headers
        or path == "/files"
        or path.startswith(ENVD_PATHS)
    )


def _is_misaddressed(headers: Mapping[bytes, bytes], path: str) -> bool:
    """AgentSphere's SDK names the sandbox in the headers of its ``connect`` as well. It means us: it shows
    its API key, and the agent, whose port it names, has no such path."""
    return (
        b"x-api-key" in headers
        and headers.get(PORT_HEADER) == str(ENVD_PORT).encode()
        and path.startswith(CONTROL_PATHS)
    )
