"""A sandbox's port over WebSocket: two connections, message by message, joined at the host."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from contextlib import suppress

from starlette.types import Message, Receive, Scope, Send
from websockets.client import ClientProtocol
from websockets.datastructures import Headers
from websockets.exceptions import InvalidHandshake, InvalidStatus
from websockets.frames import Frame, Opcode
from websockets.http11 import Request, Response
from websockets.protocol import State
from websockets.typing import Subprotocol
from websockets.uri import WebSocketURI

from wardian.api.envd.plane import Plane, Unreachable
from wardian.api.envd.tunnel import ByteStream, dial, forwarded, returned
from wardian.model.errors import WardianError
from wardian.model.sandbox import Sandbox

MESSAGE_MAX = 16 * 1024 * 1024
HANDSHAKE_S = 30.0
CLOSE_S = 5.0
_STATUS_MAX = 599
_NO_STATUS, _ABNORMAL, _BAD_DATA, _GOING_AWAY, _INTERNAL = 1005, 1006, 1007, 1001, 1011
_OWN_HEADERS = (
    "Upgrade",
    "Connection",
    "Sec-WebSocket-Key",
    "Sec-WebSocket-Version",
    "Sec-WebSocket-Protocol",
)
"""What belongs to our connection with the service rather than to the client's with us."""


class Declined(Exception):
    """The service did not want a WebSocket; it answered ``response`` instead."""

    def __init__(self, response: Response) -> None:
        super().__init__(str(response.status_code))
        self.response = response


class Upstream:
    """The connection to the service inside, as messages."""

    def __init__(self, tunnel: ByteStream, protocol: ClientProtocol) -> None:
        self._tunnel, self._protocol = tunnel, protocol
        self._pending: list[Frame] = []
        self._parts: list[bytes] = []
        self._text = False

    async def handshake(self, request: Request) -> Response:
        """Raises :class:`Declined`, or ``InvalidHandshake`` for nonsense."""
        self._protocol.send_request(request)
        await self._flush()
        while True:
            response: Response | None = None
            for event in await self._read():
                if isinstance(event, Response):
                    response = event
                elif isinstance(event, Frame):
                    self._pending.append(event)
            error = self._protocol.handshake_exc
            if isinstance(error, InvalidStatus):
                raise Declined(error.response)
            if error is not None:
                raise InvalidHandshake(str(error)) from error
            if response is not None:
                return response

    async def _read(self) -> Iterable[object]:
        data = await self._tunnel.read()
        if data:
            self._protocol.receive_data(data)
        else:
            self._protocol.receive_eof()
        await self._flush()
        return self._protocol.events_received()

    async def _flush(self) -> None:
        for data in self._protocol.data_to_send():
            if data:
                await self._tunnel.write(data)

    async def next(self) -> str | bytes | None:
        """The next whole message; None when the service has closed."""
        while True:
            while self._pending:
                message = self._assemble(self._pending.pop(0))
                if message is not None:
                    return message
            if self._protocol.state is not State.OPEN:
                return None
            self._pending += [event for event in await self._read() if isinstance(event, Frame)]

    def _assemble(self, frame: Frame) -> str | bytes | None:
        """Put fragments together; the protocol has checked their order and their sum."""
        if frame.opcode in (Opcode.TEXT, Opcode.BINARY):
            self._text = frame.opcode is Opcode.TEXT
            self._parts = []
        elif frame.opcode is not Opcode.CONT:
            return None
        self._parts.append(bytes(frame.data))
        if not frame.fin:
            return None
        whole, self._parts = b"".join(self._parts), []
        return whole.decode() if self._text else whole

    async def send(self, message: str | bytes) -> None:
        if isinstance(message, str):
            self._protocol.send_text(message.encode())
        else:
            self._protocol.send_binary(message)
        await self._flush()

    async def close(self, code: int, reason: str) -> None:
        if self._protocol.state is State.OPEN:
            if code in (_NO_STATUS, _ABNORMAL):
                self._protocol.send_close()
            else:
                self._protocol.send_close(code, reason)
            await self._flush()

    @property
    def ending(self) -> tuple[int, str]:
        """Code and reason with which the service closed, or with which we gave it up."""
        close = self._protocol.close_rcvd or self._protocol.close_sent
        return (_ABNORMAL, "") if close is None else (close.code, close.reason)


async def proxy(
    plane: Plane, sandbox: Sandbox, port: int, scope: Scope, receive: Receive, send: Send
) -> None:
    """Join a client's WebSocket with the service's. Raises :class:`Unreachable` before it is accepted."""
    async with plane.guest(sandbox.id) as guest:
        try:
            tunnel = await dial(guest, sandbox, port)
        except (WardianError, OSError) as error:
            raise Unreachable(502, f"port {port} cannot be reached: {error}", port) from error
        try:
            plane.visits.note(sandbox.id, port, "websocket")
            await _serve(sandbox, port, tunnel, scope, receive, send)
        finally:
            await tunnel.close()


async def _serve(
    sandbox: Sandbox, port: int, tunnel: ByteStream, scope: Scope, receive: Receive, send: Send
) -> None:
    protocol, request = _handshake(sandbox, port, scope)
    upstream = Upstream(tunnel, protocol)
    try:
        async with asyncio.timeout(HANDSHAKE_S):
            response = await upstream.handshake(request)
    except Declined as declined:
        answer = declined.response
        headers = returned(
            (k.encode(), v.encode("latin-1", "replace")) for k, v in answer.headers.raw_items()
        )
        await deny(scope, send, answer.status_code, headers, bytes(answer.body or b""))
        return
    except (InvalidHandshake, WardianError, OSError) as error:
        raise Unreachable(502, f"the service on port {port} gave no valid answer: {error}", port) from error
    extra = returned((k.encode(), v.encode("latin-1", "replace")) for k, v in response.headers.raw_items())
    await send(
        {
            "type": "websocket.accept",
            "subprotocol": protocol.subprotocol,
            "headers": [(k, v) for k, v in extra if not k.startswith(b"sec-websocket-")],
        }
    )
    await _join(upstream, receive, send)


def _handshake(sandbox: Sandbox, port: int, scope: Scope) -> tuple[ClientProtocol, Request]:
    listed: list[tuple[bytes, bytes]] = scope["headers"]
    protocol = ClientProtocol(
        WebSocketURI(
            secure=False,
            host="127.0.0.1",
            port=port,
            path=(scope.get("raw_path") or scope["path"].encode()).decode("latin-1"),
            query=scope["query_string"].decode("latin-1"),
        ),
        subprotocols=[Subprotocol(name) for name in scope.get("subprotocols", ())] or None,
        max_size=MESSAGE_MAX,
    )
    request = protocol.connect()
    passed = forwarded(
        listed,
        host=dict(listed).get(b"host", b""),
        client=(scope.get("client") or ("unknown", 0))[0],
        scheme="https" if scope["scheme"] == "wss" else "http",
        port=port,
        mask=sandbox.spec.mask_request_host,
    )
    headers = Headers()
    for name, value in passed:
        if not name.startswith(b"Sec-Websocket-"):
            headers[name.decode("latin-1")] = value.decode("latin-1")
    for own in _OWN_HEADERS:
        if own in request.headers:
            headers[own] = request.headers[own]
    return protocol, Request(request.path, headers)


async def _join(upstream: Upstream, receive: Receive, send: Send) -> None:
    """Carry messages both ways until one side is done."""

    async def inward() -> None:
        while (message := await receive())["type"] == "websocket.receive":
            await upstream.send(_content(message))
        with suppress(WardianError, OSError):
            await upstream.close(message.get("code") or _NO_STATUS, message.get("reason") or "")

    async def outward() -> None:
        code, reason = _INTERNAL, ""
        try:
            while (message := await upstream.next()) is not None:
                kind = "text" if isinstance(message, str) else "bytes"
                await send({"type": "websocket.send", kind: message})
            code, reason = upstream.ending
        except UnicodeDecodeError:
            code = _BAD_DATA
        except (WardianError, OSError):
            code = _GOING_AWAY
        with suppress(RuntimeError, OSError):  # the client may have left in the same moment
            await send({"type": "websocket.close", "code": _tellable(code), "reason": reason})

    tasks = [asyncio.ensure_future(inward()), asyncio.ensure_future(outward())]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if tasks[1] not in done:  # the client closed: let the service's goodbye come, but not forever
            await asyncio.wait([tasks[1]], timeout=CLOSE_S)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _content(message: Message) -> str | bytes:
    text: str | None = message.get("text")
    return text if text is not None else message["bytes"]


def _tellable(code: int) -> int:
    """1005 and 1006 only describe a close; they cannot be sent."""
    return {_NO_STATUS: 1000, _ABNORMAL: _GOING_AWAY}.get(code, code)


async def deny(
    scope: Scope, send: Send, status: int, headers: Iterable[tuple[bytes, bytes]], body: bytes
) -> None:
    """Answer a WebSocket request with an ordinary response; servers that cannot, close."""
    if status > _STATUS_MAX:
        status, body = 502, b""
    if "websocket.http.response" not in scope.get("extensions", {}):
        await send({"type": "websocket.close", "code": 1008})
        return
    listed = [(k, v) for k, v in headers if k != b"content-length"]
    listed.append((b"content-length", str(len(body)).encode()))
    await send({"type": "websocket.http.response.start", "status": status, "headers": listed})
    await send({"type": "websocket.http.response.body", "body": body})
