"""Only our own names are answered: whatever else a request calls us, it was meant for somebody else."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from wardian.api.envd.exchange import JSON, Exchange
from wardian.api.envd.websocket import deny
from wardian.model.domain import Domain, host_name

MISDIRECTED = 421


class OwnNames:
    """ASGI middleware: answers ``status`` to requests whose Host is not of ``domain``."""

    def __init__(self, app: ASGIApp, domain: Domain, *, status: int = MISDIRECTED) -> None:
        self._app, self._domain, self._status = app, domain, status

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        host = dict(scope["headers"]).get(b"host", b"").decode("latin-1")
        if self._domain.covers(host_name(host)):
            await self._app(scope, receive, send)
            return
        message = f"this address leads to {self._domain.name} and *.{self._domain.name} only"
        if scope["type"] == "http":
            await Exchange(scope, receive, send).refuse(self._status, message)
        else:
            await receive()  # websocket.connect
            await deny(scope, send, self._status, [(b"content-type", JSON.encode())], b"")
