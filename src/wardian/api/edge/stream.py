"""One HTTP/2 request and its answer, as an ASGI application sees them."""

from __future__ import annotations

import asyncio
import logging
import re
from typing import Protocol
from urllib.parse import unquote

from starlette.types import ASGIApp, Message, Scope

log = logging.getLogger("uvicorn.error")
"""The web server's own log, so that what is kept out of it there is kept out here."""

Headers = list[tuple[bytes, bytes]]

_OF_ONE_CONNECTION = frozenset(
    {b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade"}
)
"""HTTP/2 has no such headers; frames say all that."""
_PATH = re.compile(rb"/[!-~]*|\*")
_METHOD = re.compile(rb"[A-Za-z-]{1,40}")


class BadRequest(Exception):
    """A request that HTTP/2 can carry and HTTP cannot mean; answered 400."""


class Line(Protocol):
    """What a stream needs of its connection. After :meth:`Stream.hang_up` nothing of it is called."""

    def go_on(self, stream: Stream) -> None:
        """Tell a client that waits for it to send its body."""

    def taken(self, stream: Stream, size: int) -> None:
        """``size`` bytes of the window are free again."""

    async def send_head(self, stream: Stream, status: int, headers: Headers) -> None: ...

    async def send_body(self, stream: Stream, data: bytes, *, last: bool) -> None: ...

    def abort(self, stream: Stream) -> None:
        """Break the answer off, so that nobody takes it for whole."""

    def over(self, stream: Stream) -> None:
        """The application has returned."""


class Stream:
    """``room`` is set whenever the client may have made room for more of the answer, of which ``sent`` bytes
    have gone."""

    __slots__ = (
        "_body",
        "_more_body",
        "_news",
        "_sending",
        "_wants_word",
        "_window_used",
        "answered",
        "gone",
        "id",
        "line",
        "room",
        "scope",
        "sent",
        "started",
    )

    def __init__(self, line: Line, stream_id: int, scope: Scope, *, more_body: bool) -> None:
        self.line, self.id, self.scope = line, stream_id, scope
        self.started = self.answered = self.gone = False
        self.room = asyncio.Event()
        self.sent = 0  # bytes of the answer's body
        self._body = bytearray()
        self._window_used = 0
        self._more_body = more_body
        self._wants_word = more_body and (b"expect", b"100-continue") in scope["headers"]
        self._news = asyncio.Event()
        self._sending = asyncio.Lock()
        if not more_body:
            self._news.set()

    # -- what the connection says

    def feed(self, data: bytes, window_used: int) -> None:
        """More of the body. It is kept until the application takes it; the client's window bounds it."""
        if self.answered:  # nobody will take it any more
            self.line.taken(self, window_used)
            return
        self._body += data
        self._window_used += window_used
        self._news.set()

    def feed_end(self) -> None:
        self._more_body = False
        self._news.set()

    def hang_up(self) -> None:
        """The client is gone, or does not want the answer any more."""
        self.gone = True
        self._free_window()
        self._news.set()
        self.room.set()

    # -- what the application says

    async def run(self, app: ASGIApp) -> None:
        """Let the application answer, whatever that comes to."""
        try:
            await app(self.scope, self.receive, self.send)
        except BaseException as error:  # as uvicorn does: a cancelled answer must not look whole
            log.error("Exception in ASGI application\n", exc_info=error)
            await self._give_up()
        else:
            if not self.answered and not self.gone:
                log.error("ASGI callable returned without completing response.")
                await self._give_up()
        finally:
            self._free_window()
            self.line.over(self)

    async def _give_up(self) -> None:
        if self.started:
            if not self.answered:
                self.line.abort(self)
            return
        text = b"Internal Server Error"
        headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", b"%d" % len(text))]
        await self.send({"type": "http.response.start", "status": 500, "headers": headers})
        await self.send({"type": "http.response.body", "body": text})

    async def receive(self) -> Message:
        if self._wants_word and not self.started and not self.gone:
            self._wants_word = False
            self.line.go_on(self)
        if not self.gone and not self.answered:
            await self._news.wait()
            self._news.clear()
        if self.gone or self.answered:
            return {"type": "http.disconnect"}
        body, self._body = bytes(self._body), bytearray()
        self._free_window()
        return {"type": "http.request", "body": body, "more_body": self._more_body}

    async def send(self, message: Message) -> None:
        async with self._sending:  # two tasks may send, and a message may have to wait half-way for room
            if not self.gone:
                await self._send(message)

    async def _send(self, message: Message) -> None:
        if not self.started:
            if message["type"] != "http.response.start":
                raise RuntimeError(f"an answer begins with its start, not with {message['type']}")
            self.started = True
            await self.line.send_head(self, message["status"], list(message.get("headers", ())))
            return
        if self.answered or message["type"] != "http.response.body":
            raise RuntimeError(f"{message['type']} has no place here in an answer")
        last = not message.get("more_body", False)
        body = b"" if self.scope["method"] == "HEAD" else message.get("body", b"")
        if body or last:
            await self.line.send_body(self, body, last=last)
        if last:
            self.answered = True
            self._free_window()
            self._news.set()

    def _free_window(self) -> None:
        if self._window_used:
            self.line.taken(self, self._window_used)
            self._window_used = 0


def scope_of(headers: Headers, *, more_body: bool, **connection: object) -> Scope:
    """The request's ASGI scope; ``connection`` is what the connection adds. Raises :class:`BadRequest`.

    What HTTP/2 says in frames is said in HTTP/1.1's words, because applications know those.
    """
    pseudo: dict[bytes, bytes] = {}
    listed: Headers = []
    cookies: list[bytes] = []
    hosts: list[bytes] = []
    for name, value in headers:
        if name.startswith(b":"):
            pseudo[name] = value
        elif name == b"cookie":
            cookies.append(value)
        elif name == b"host":
            hosts.append(value)
        else:
            listed.append((name, value))
    if b":authority" in pseudo:
        hosts.append(pseudo[b":authority"])
    if len(set(hosts)) != 1:
        raise BadRequest("a request names one host")
    path, method = pseudo.get(b":path", b""), pseudo[b":method"]
    raw_path, _, query = path.partition(b"?")
    if not _PATH.fullmatch(path):
        raise BadRequest("a path begins with a slash, and has only visible ASCII characters")
    if not _METHOD.fullmatch(method):
        raise BadRequest("that is no method")
    listed.insert(0, (b"host", hosts[0]))
    if cookies:
        listed.append((b"cookie", b"; ".join(cookies)))
    if more_body and not any(name == b"content-length" for name, _ in listed):
        listed.append((b"transfer-encoding", b"chunked"))
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "2",
        "scheme": "https",
        "method": method.decode("ascii"),
        "path": unquote(raw_path.decode("ascii")),
        "raw_path": raw_path,
        "query_string": query,
        "root_path": "",
        "headers": listed,
        **connection,
    }


def wire_headers(status: int, headers: Headers) -> Headers:
    """An answer's headers as HTTP/2 has them."""
    lowered = ((name.lower(), value) for name, value in headers)
    return [
        (b":status", b"%d" % status),
        *((name, value) for name, value in lowered if name not in _OF_ONE_CONNECTION),
    ]
