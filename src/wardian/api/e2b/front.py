"""What happens to every request of the control plane before a route sees it: key, bounds, body.

The key is checked first, so a stranger costs a hash and a lookup, never a parse.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from urllib.parse import unquote

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from wardian.api.auth import Keyring
from wardian.api.errors import http_status, rest_body, rest_headers
from wardian.model.errors import Invalid, WardianError
from wardian.model.isolation import Isolation, Wanted, isolation_of
from wardian.model.trigger import HOOK_PATH

BODY_BYTES_MAX = 1024 * 1024
"""Far above any request of the protocol: metadata and environment are its only open-ended parts."""

LARGE_BODIES: Mapping[str, int] = {"/wardian/runners": 32 << 20}
"""Paths that take a whole archive."""

HEADERS_MAX, HEADER_BYTES_MAX = 100, 32 * 1024
PATH_BYTES_MAX = 8 * 1024

_SLASH = re.compile(rb"%2f", re.IGNORECASE)
OPEN_PATHS = frozenset({"/health"})
ISOLATION_HEADER = b"x-wardian-isolation"
"""What isolation is asked for, by clients whose requests have no field for it."""

BEARER_PATHS = frozenset({"/teams"})


class BodyTooLarge(Invalid):
    code = "request_too_large"


class HeadersTooLarge(Invalid):
    code = "headers_too_large"


class Front:
    """ASGI middleware. Who asks, what isolation is wanted, and how wide egress may be, is left in
    ``scope["state"]``: "tenant", "wanted", "bound"."""

    def __init__(self, app: ASGIApp, keyring: Keyring) -> None:
        self._app, self._keyring = app, keyring

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = _path(scope)
        scope = {**scope, "path": path}
        try:
            _check_head(scope)
            if path not in OPEN_PATHS and not path.startswith(HOOK_PATH):
                headers = dict(scope["headers"])
                key = await self._keyring.key_of(headers, bearer=path in BEARER_PATHS)
                wanted = Wanted(_asked_isolation(headers), key.minimum_isolation)
                scope.setdefault("state", {}).update(tenant=key.tenant, wanted=wanted, bound=key.egress)
            body = await whole_body(scope, receive, LARGE_BODIES.get(path, BODY_BYTES_MAX))
        except WardianError as error:
            await refuse(send, error)
            return
        if body is not None:
            await self._app(scope, replay(body, receive), send)


def _asked_isolation(headers: Mapping[bytes, bytes]) -> Isolation | None:
    value = headers.get(ISOLATION_HEADER)
    return None if value is None else isolation_of(value.decode("latin-1"))


def _path(scope: Scope) -> str:
    """The path, in which an encoded slash stays encoded: it is part of a name, and separates nothing."""
    raw: bytes = scope.get("raw_path") or b""
    if not _SLASH.search(raw):
        return str(scope["path"])
    return unquote(_SLASH.sub(b"%252F", raw).partition(b"?")[0].decode("latin-1"))


def _check_head(scope: Scope) -> None:
    headers = scope["headers"]
    if (
        len(headers) > HEADERS_MAX
        or sum(len(name) + len(value) for name, value in headers) > HEADER_BYTES_MAX
    ):
        raise HeadersTooLarge("the request's headers are too large")
    if len(scope["path"]) + len(scope["query_string"]) > PATH_BYTES_MAX:
        raise HeadersTooLarge("the request's address is too long")


async def whole_body(scope: Scope, receive: Receive, most: int) -> bytes | None:
    """The body, or None when the client hung up. What is beyond ``most`` bytes is never kept."""
    for name, value in scope["headers"]:
        if name == b"content-length" and (not value.isdigit() or int(value) > most):
            raise BodyTooLarge(f"the request's body is larger than {most} bytes")
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        body += message.get("body", b"")
        if len(body) > most:
            raise BodyTooLarge(f"the request's body is larger than {most} bytes")
        if not message.get("more_body", False):
            return bytes(body)


def replay(body: bytes, receive: Receive) -> Receive:
    """What gives a body that was read already."""
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


async def refuse(send: Send, error: WardianError) -> None:
    """Answer with ``error``."""
    body = json.dumps(rest_body(error)).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        *((name.encode(), value.encode()) for name, value in rest_headers(error).items()),
    ]
    await send({"type": "http.response.start", "status": http_status(error), "headers": headers})
    await send({"type": "http.response.body", "body": body})
