"""The door for the files of builds: ``PUT /uploads/{ticket}``, an archive of any size, and no key.

It stands before everything that reads a whole body, or asks for a key: the ticket in the address is the
permission. It was handed out to the owner of a template, and opens once.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

from starlette.types import ASGIApp, Receive, Scope, Send

from wardian.api.e2b.front import refuse
from wardian.builds.uploads import UPLOAD_BYTES_MAX, TooLarge, Uploads
from wardian.model.errors import Invalid, WardianError

UPLOAD_PATH = "/uploads/"
TICKET_CHARS_MAX = 64


class Door:
    """ASGI middleware. What is no upload is passed on."""

    def __init__(self, app: ASGIApp, uploads: Uploads) -> None:
        self._app, self._uploads = app, uploads

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path: str = scope["path"]
        if scope["type"] != "http" or scope["method"] != "PUT" or not path.startswith(UPLOAD_PATH):
            await self._app(scope, receive, send)
            return
        try:
            ticket = self._uploads.take(path.removeprefix(UPLOAD_PATH)[:TICKET_CHARS_MAX])
            _check_length(scope)
            await self._uploads.receive(ticket, _body(receive))
        except HungUp:
            return
        except WardianError as error:
            await refuse(send, error)
            return
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})


class HungUp(Exception):
    """The client is gone in the middle of its upload."""


def _check_length(scope: Scope) -> None:
    for name, value in scope["headers"]:
        if name == b"content-length":
            if not value.isdigit():
                raise Invalid("Content-Length is no number")
            if int(value) > UPLOAD_BYTES_MAX:
                raise TooLarge(f"the files are larger than {UPLOAD_BYTES_MAX >> 20} MiB")


async def _body(receive: Receive) -> AsyncIterator[bytes]:
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise HungUp
        if chunk := message.get("body", b""):
            yield chunk
        if not message.get("more_body", False):
            return
