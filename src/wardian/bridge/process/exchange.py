"""One connection of a program inside to the bridge: HTTP/1.1 requests, one after another.

For each: who asks is checked, the server decides, the secret goes in, the request goes on, and the answer
comes back as it arrives, without anything that must not be inside.
"""

from __future__ import annotations

import asyncio
import json
import logging
import ssl
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import sha256
from http import HTTPStatus
from typing import Any

import h11

from wardian.bridge.channel import BridgeGone
from wardian.bridge.process.inject import BadSecret, Injected, inject, token_in
from wardian.bridge.process.ledger import Entry, digest_of, replayed
from wardian.bridge.process.oauth import Tokens
from wardian.bridge.process.scrub import JSON_MAX, Scrubber, seal_tokens
from wardian.bridge.process.usage import UsageReader
from wardian.bridge.process.works import Link, Wire, Works
from wardian.model.egress import name_of
from wardian.model.errors import Forbidden, Invalid, Kind, LimitExceeded, Unavailable, WardianError
from wardian.model.grant import BRIDGE_HOST, SAFE_METHODS, Injection, Injector, injector_of
from wardian.model.secret import Place

HEAD_MAX = 64 * 1024
HEADERS_MAX = 200
IDLE_S = 300.0
HANDSHAKE_S = 20.0
HEAD_S = 900.0
"""How long an upstream may think before it answers."""
REUSE_S = 4.0
"""How long an idle upstream connection is good for a request that must not be sent twice."""
LAST_BYTES_S = 5.0
"""How long the rest of a request may take once its answer is complete."""
URL_MAX = 2048
"""Characters of a URL that the ledger keeps; of what is longer, a digest beside them."""
BODY_MAX = 8 << 20
"""Of a request that must be held whole before it is signed."""

STATUS: Mapping[str, int] = {
    "budget_exceeded": 402,
    "body_too_large": 413,
    "upstream_unreachable": 502,
    "upstream_not_trusted": 502,
    "upstream_broke_off": 502,
    "upstream_denied": 403,
}
_STATUS_OF_KIND: Mapping[Kind, int] = {
    Kind.INVALID: 400,
    Kind.UNAUTHENTICATED: 401,
    Kind.FORBIDDEN: 403,
    Kind.NOT_FOUND: 404,
    Kind.CONFLICT: 409,
    Kind.LIMIT: 429,
    Kind.UNSUPPORTED: 501,
    Kind.UNAVAILABLE: 503,
    Kind.TIMEOUT: 504,
}
_NOT_PASSED_IN = frozenset({"set-cookie", "set-cookie2", "alt-svc", "keep-alive", "proxy-connection"})
_HOP = frozenset(
    {"host", "keep-alive", "proxy-connection", "proxy-authorization", "expect", "accept-encoding"}
)
_OURS = frozenset({"wardian-step", "wardian-token"})

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Request:
    """What was asked, and what the server decided of it."""

    method: str
    target: str
    headers: list[tuple[str, str]]
    host: str
    port: int
    token: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    upgrade: bool = False

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]

    def header(self, name: str) -> str:
        return next((value for each, value in self.headers if each.lower() == name), "")


class _Ended(Exception):
    """The connection cannot go on."""


class Exchange:
    """:meth:`run` serves a connection until it ends."""

    def __init__(self, works: Works, tokens: Tokens, link: Link, inside: Wire) -> None:
        self._works, self._tokens, self._link, self._inside = works, tokens, link, inside
        self._conn = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_MAX)
        self._upstream: Wire | None = None
        self._upstream_at: tuple[str, int, bool, str | None] | None = None
        self._used_at = 0.0
        self._body_read = 0
        self._answered = False

    async def run(self) -> None:
        try:
            while await self._one():
                self._conn.start_next_cycle()
        except (OSError, TimeoutError, _Ended, h11.RemoteProtocolError, ssl.SSLError) as error:
            _log.debug("a connection of %s ended: %r", self._link.holder.sandbox, error)
        finally:
            self._drop_upstream()
            self._inside.close()

    # ── the program's side

    async def _event(self) -> Any:
        while (event := self._conn.next_event()) is h11.NEED_DATA:
            if self._conn.they_are_waiting_for_100_continue:
                await self._inside.write(
                    self._conn.send(
                        h11.InformationalResponse(status_code=100, headers=[], reason=_reason(100))
                    )
                )
            async with asyncio.timeout(IDLE_S):
                self._conn.receive_data(await self._inside.read())
        return event

    async def _one(self) -> bool:
        """One request. False: no more can follow it."""
        self._answered, self._body_read = False, 0
        try:
            event = await self._event()
        except h11.RemoteProtocolError:
            await self._say(Invalid("this is no HTTP/1.1 request", code="bad_request"))
            return False
        if not isinstance(event, h11.Request):
            return False
        try:
            await self._handle(event)
        except (WardianError, BadSecret) as error:
            if self._answered:
                return False
            await self._say(error)
        except (OSError, TimeoutError, h11.RemoteProtocolError) as error:
            if self._answered:
                raise
            _log.info("%s: %r", self._link.holder.sandbox, error)
            await self._say(Unavailable("the upstream broke off", code="upstream_broke_off"))
        return self._conn.our_state is h11.DONE and self._conn.their_state is h11.DONE

    async def _say(self, error: WardianError) -> None:
        """An answer of our own."""
        status = STATUS.get(error.code, _STATUS_OF_KIND.get(error.kind, 500))
        told = {"code": error.code, "type": error.code, "message": str(error), "hint": error.hint}
        body = json.dumps({"error": told}).encode()
        again = status in (429, 502, 503, 504)
        await self._answer(
            status,
            [
                ("content-type", "application/json"),
                ("content-length", str(len(body))),
                ("x-should-retry", "true" if again else "false"),
                ("wardian-error", error.code),
            ],
            body,
        )

    async def _answer(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        if self._conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            raise _Ended
        if self._conn.their_state is not h11.DONE:
            headers = [*headers, ("connection", "close")]
        self._answered = True
        response = h11.Response(status_code=status, headers=headers, reason=_reason(status))
        data = self._conn.send(response) or b""
        data += self._conn.send(h11.Data(body)) or b""
        await self._inside.write(data + (self._conn.send(h11.EndOfMessage()) or b""))

    # ── a request

    async def _handle(self, event: h11.Request) -> None:
        request = self._parse(event)
        holder = self._link.holder
        verdict = self._works.inspector.check(request.token, holder)
        facts, _ = await self._works.channel.ask(
            "admit",
            sandbox=holder.sandbox,
            epoch=holder.epoch,
            base=self._link.base,
            verdict=verdict,
            host=request.host,
            port=request.port,
            method=request.method,
            path=request.path,
            upgrade=request.upgrade,
        )
        if verdict != "ok" and not (verdict == "token_missing" and facts["admission"] == "link"):
            raise Forbidden("not admitted", code=verdict)  # whatever the server says: ours is the last word
        request.facts = facts
        if self._link.base:
            _, mark, query = request.target.partition("?")
            request.target = facts["target"] + mark + query
        injector = injector_of(facts["injector"])
        secret, place = await self._open(request, injector)
        await self._send_on(request, injector, secret, place)

    async def _open(self, request: _Request, injector: Injector) -> tuple[bytes, Place]:
        told = request.facts["secret"]
        place = Place(told["tenant"], told["secret"], told["version"])
        if injector.kind is Injection.OAUTH2:
            return await self._tokens.access(self._link.holder, place), place
        return await self._works.value(place), place

    def _parse(self, event: h11.Request) -> _Request:
        """Raises :class:`Invalid`."""
        headers = [(name.decode("ascii"), value.decode("latin-1")) for name, value in event.headers]
        method, target = event.method.decode("ascii"), event.target.decode("ascii")
        hosts = [value for name, value in headers if name == "host"]
        if len(headers) > HEADERS_MAX or len(hosts) != 1 or not target.startswith("/"):
            raise Invalid("a request has one Host, a path, and fewer headers", code="bad_request")
        if {"content-length", "transfer-encoding"} <= {name for name, _ in headers}:
            raise Invalid("a body has a length or comes in chunks, not both", code="bad_request")
        host, _, port = hosts[0].partition(":")
        expected = BRIDGE_HOST if self._link.base else self._link.host
        if name_of(host) != expected or (port and port != str(self._link.port)):
            raise Invalid(f"this connection is for {expected}, not {host[:64]}", code="host_mismatch")
        upgrade = any(name == "upgrade" for name, _ in headers)
        token = token_in(headers, target)
        return _Request(method, target, headers, self._link.host, self._link.port, token, upgrade=upgrade)

    # ── towards the upstream

    async def _send_on(self, request: _Request, injector: Injector, secret: bytes, place: Place) -> None:
        facts = request.facts
        unsafe = request.method not in SAFE_METHODS
        body: bytes | None = None
        entry: Entry | None = None
        if unsafe and facts["in_doubt"] != "off" and not request.upgrade:
            body = await self._whole_body(facts["ledger_body_max"])
            entry = await self._intend(request, body)
            if entry.replay is not None:
                await self._replay(entry)
                return
        try:
            injected, body, upstream = await self._prepare(request, injector, secret, body, entry)
        except BaseException:
            if entry is not None:
                await self._works.channel.ask("unsent", effect=entry.id)
            raise
        self._works.checkpoint("before_send")
        await _Relay(self, request, injected, upstream, entry, place).run(body)

    async def _prepare(
        self,
        request: _Request,
        injector: Injector,
        secret: bytes,
        body: bytes | None,
        entry: Entry | None,
    ) -> tuple[Injected, bytes | None, Wire]:
        """All that can fail before the first byte goes out. ``body`` is there if it had to be read."""
        if injector.kind is Injection.SIGV4 and not request.header("x-amz-content-sha256") and body is None:
            body = await self._whole_body(BODY_MAX)
        injected = inject(
            injector,
            secret,
            request.method,
            request.target,
            self._outgoing(request, entry),
            body_digest=None if body is None else sha256(body).hexdigest(),
            token=request.token,
        )
        self._works.checkpoint("before_dial")
        fresh = request.method not in SAFE_METHODS
        return injected, body, await self._connect(request.facts, fresh=fresh)

    async def _replay(self, entry: Entry) -> None:
        said = "broke_off"
        try:
            await self._answer(*replayed(entry.replay, self._works.blobs))
            said = "delivered"
        finally:
            self._works.channel.tell(said, effect=entry.id)

    def _outgoing(self, request: _Request, entry: Entry | None) -> list[tuple[str, str]]:
        """The program's headers without what is between it and us."""
        named = {name.strip().lower() for name in request.header("connection").split(",")}
        kept = [
            (name, value)
            for name, value in request.headers
            if name not in _HOP
            and name not in _OURS
            and (name != "connection")
            and (name not in named or (request.upgrade and name == "upgrade"))
        ]
        facts = request.facts
        default = 443 if facts["tls"] else 80
        host = facts["host"] if facts["port"] == default else f"{facts['host']}:{facts['port']}"
        kept = [("host", host), *kept, ("accept-encoding", "identity")]
        if request.upgrade:
            kept.append(("connection", "Upgrade"))
        if entry is not None and entry.key:
            kept = [(name, value) for name, value in kept if name != "idempotency-key"]
            kept.append(("idempotency-key", entry.key))
        return kept

    async def _whole_body(self, most: int) -> bytes:
        """All of the request's body. Raises :class:`LimitExceeded`."""
        parts = bytearray()
        while not isinstance(event := await self._event(), h11.EndOfMessage):
            if not isinstance(event, h11.Data):
                raise _Ended
            parts += event.data
            if len(parts) > most:
                raise LimitExceeded(
                    f"the body has more than {most} bytes, too many for this grant",
                    code="body_too_large",
                    hint="a grant with in_doubt 'off' passes bodies of any size",
                )
        self._body_read = len(parts)
        return bytes(parts)

    async def _intend(self, request: _Request, body: bytes) -> Entry:
        """Write down what is about to be done. Raises Conflict where a human must decide first."""
        query = request.target.partition("?")[2]
        told, _ = await self._works.channel.ask(
            "intend",
            sandbox=self._link.holder.sandbox,
            grant=request.facts["grant"],
            step=request.header("wardian-step")[:128],
            method=request.method,
            url=_bounded(
                f"{'https' if request.facts['tls'] else 'http'}://{request.facts['host']}"
                f":{request.facts['port']}{request.path}"
            ),
            digest=digest_of(query, request.header("content-type"), body),
        )
        self._works.checkpoint("after_intent")
        return Entry(told["effect"], told["key"] or request.header("idempotency-key"), told.get("replay"))

    async def _connect(self, facts: Mapping[str, Any], *, fresh: bool) -> Wire:
        at = (facts["host"], facts["port"], facts["tls"], facts["address"])
        known = self._upstream
        if known is not None:
            idle = time.monotonic() - self._used_at
            if self._upstream_at == at and not known.over and (not fresh or idle < REUSE_S):
                return known
            self._drop_upstream()
        self._upstream = await self._works.dial(self._link.holder, at[0], at[1], tls=at[2], address=at[3])
        self._upstream_at = at
        return self._upstream

    def _drop_upstream(self) -> None:
        if self._upstream is not None:
            self._upstream.close()
            self._upstream = self._upstream_at = None


class _Relay:
    """One request on its way, and its answer."""

    def __init__(
        self,
        exchange: Exchange,
        request: _Request,
        injected: Injected,
        upstream: Wire,
        entry: Entry | None,
        place: Place,
    ) -> None:
        self._exchange, self._request, self._injected = exchange, request, injected
        self._upstream, self._entry, self._place = upstream, entry, place
        self._conn = h11.Connection(h11.CLIENT, max_incomplete_event_size=HEAD_MAX)
        self._scrubber = Scrubber(injected.hidden)
        self._bytes_out = self._bytes_in = 0
        self._status = 0
        self._gone = self._delivered = False
        self._left, self._last = -1, b""  # of a body whose length is told
        self._usage = UsageReader("")

    async def run(self, body: bytes | None) -> None:
        exchange = self._exchange
        head = h11.Request(
            method=self._request.method, target=self._injected.target, headers=list(self._injected.headers)
        )
        done = False
        sending: asyncio.Task[None] | None = None
        try:
            await self._upstream.write(self._conn.send(head))
            sending = asyncio.create_task(self._send_body(body))
            sending.add_done_callback(self._sent)
            done = await self._receive(sending)
        finally:
            if sending is not None and not sending.done():
                sending.cancel()
                with suppress(asyncio.CancelledError, Exception):
                    await sending
            if not done:
                exchange._drop_upstream()
            exchange._used_at = time.monotonic()
            self._account()

    def _account(self) -> None:
        usage = self._usage.end()
        with suppress(BridgeGone):
            if self._entry is not None:
                said = "delivered" if self._delivered else "broke_off"
                self._exchange._works.channel.tell(said, effect=self._entry.id)
            self._exchange._works.channel.tell(
                "answered",
                sandbox=self._exchange._link.holder.sandbox,
                grant=self._request.facts["grant"],
                status=self._status,
                bytes_out=self._bytes_out,
                bytes_in=self._bytes_in,
                model=self._scrubber.text(usage.model),
                tokens_in=usage.tokens_in,
                tokens_out=usage.tokens_out,
                scrubbed=self._scrubber.found,
            )

    async def _send_body(self, body: bytes | None) -> None:
        if body is not None:
            await self._upload(body)
        else:
            while not isinstance(event := await self._exchange._event(), h11.EndOfMessage):
                if not isinstance(event, h11.Data):
                    raise _Ended
                await self._upload(bytes(event.data))
        await self._upstream.write(self._conn.send(h11.EndOfMessage()))

    def _sent(self, sending: asyncio.Task[None]) -> None:
        """A program that goes away in the middle of its request: the upstream must not wait for the rest."""
        if sending.cancelled() or sending.exception() is not None:
            self._upstream.close()

    async def _upload(self, data: bytes) -> None:
        self._bytes_out += len(data)
        if self._injected.chunks is not None:
            data = self._injected.chunks.feed(data)
        if data:
            await self._upstream.write(self._conn.send(h11.Data(data)))

    # ── the answer

    async def _next(self) -> Any:
        while (event := self._conn.next_event()) is h11.NEED_DATA:
            async with asyncio.timeout(HEAD_S):
                self._conn.receive_data(await self._upstream.read())
        return event

    async def _receive(self, sending: asyncio.Task[None]) -> bool:
        """Pass the answer on. True: the upstream's connection is good for another request."""
        exchange = self._exchange
        event = await self._next()
        while isinstance(event, h11.InformationalResponse):
            if event.status_code == 101:
                await self._switch(event)
                return False
            event = await self._next()
        if not isinstance(event, h11.Response):
            raise ConnectionResetError("no answer")
        exchange._works.checkpoint("answer_begun")
        self._status = event.status_code
        if event.status_code == 401:
            exchange._tokens.forget(self._place)
        headers = self._headers(event)
        content_type = next((value for name, value in headers if name == "content-type"), "")
        self._usage = UsageReader(content_type)
        reason = event.reason
        first, event = await self._sealed(headers, content_type)
        exchange._answered = True
        self._left = int(next((value for name, value in headers if name == "content-length"), -1))
        response = h11.Response(status_code=self._status, headers=headers, reason=reason)
        await self._write((exchange._conn.send(response) or b"") + self._pass(first))
        while isinstance(event, h11.Data):
            await self._write(self._pass(self._take(event)))
            event = await self._next()
        await self._finish(headers)
        await asyncio.wait([sending], timeout=LAST_BYTES_S)
        return self._conn.our_state is h11.DONE and self._conn.their_state is h11.DONE

    def _headers(self, response: h11.Response) -> list[tuple[str, str]]:
        told = [(name.decode("ascii"), value.decode("latin-1")) for name, value in response.headers]
        if any(name == "transfer-encoding" for name, _ in told):
            told = [pair for pair in told if pair[0] != "content-length"]
        return [
            (name, self._scrubber.text(value))
            for name, value in told
            if name not in _NOT_PASSED_IN and name not in ("connection", "transfer-encoding")
        ]

    def _take(self, event: h11.Data) -> bytes:
        data = bytes(event.data)
        self._bytes_in += len(data)
        self._usage.feed(data)
        return self._scrubber.feed(data)

    def _pass(self, data: bytes) -> bytes:
        if not data:
            return b""
        coded = self._exchange._conn.send(h11.Data(data)) or b""
        if self._entry is None:
            return coded
        self._entry.keep(data)
        self._left -= len(data)
        if self._left:
            return coded
        self._last = coded  # with it a program has the whole answer: first it must be on record
        return b""

    async def _sealed(self, headers: list[tuple[str, str]], content_type: str) -> tuple[bytes, Any]:
        """The beginning of the body: of short JSON all of it, with fresh tokens sealed."""
        event = await self._next()
        if content_type.partition(";")[0].strip().lower() not in ("application/json", "text/json"):
            return b"", event
        body = b""
        while isinstance(event, h11.Data) and len(body) <= JSON_MAX:
            body += self._take(event)
            event = await self._next()
        if isinstance(event, h11.Data):
            return body, event
        body += self._scrubber.rest()
        sealed = seal_tokens(body)
        if sealed is not None:
            body = sealed
            if any(name == "content-length" for name, _ in headers):
                headers[:] = [pair for pair in headers if pair[0] != "content-length"]
                headers.append(("content-length", str(len(body))))
        return body, event

    async def _finish(self, headers: list[tuple[str, str]]) -> None:
        """What is on record comes before the end that the program sees."""
        exchange = self._exchange
        rest = self._pass(self._scrubber.rest())
        if self._entry is not None:
            exchange._works.checkpoint("before_record")
            await exchange._works.channel.ask(
                "record",
                effect=self._entry.id,
                **self._entry.recorded(self._status, headers, exchange._works.blobs),
            )
            exchange._works.checkpoint("after_record")
        await self._write(self._last + rest + (exchange._conn.send(h11.EndOfMessage()) or b""))
        if self._gone:
            raise _Ended
        self._delivered = True

    async def _write(self, data: bytes) -> None:
        """To the program. If it is gone, an answer that belongs on record is read to its end all the same."""
        if self._gone:
            return
        try:
            await self._exchange._inside.write(data)
        except OSError:
            if self._entry is None:
                raise
            self._gone = True

    async def _switch(self, event: h11.InformationalResponse) -> None:
        """WebSocket, or whatever both sides agreed on: bytes from here on."""
        exchange = self._exchange
        self._status = 101
        exchange._answered = True
        headers = [
            (name, value) for name, value in event.headers if name.decode().lower() not in _NOT_PASSED_IN
        ]
        answer = h11.InformationalResponse(status_code=101, headers=headers, reason=event.reason)
        await exchange._inside.write(exchange._conn.send(answer))
        early_in, _ = self._conn.trailing_data
        early_out, _ = exchange._conn.trailing_data
        await self._upstream.write(early_out)
        await exchange._inside.write(self._inward(early_in))
        pumps = [asyncio.create_task(self._pump_out()), asyncio.create_task(self._pump_in())]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)

    def _inward(self, data: bytes) -> bytes:
        self._bytes_in += len(data)
        return self._scrubber.feed(data)

    async def _pump_out(self) -> None:
        while data := await self._exchange._inside.read():
            self._bytes_out += len(data)
            await self._upstream.write(data)

    async def _pump_in(self) -> None:
        while data := await self._upstream.read():
            await self._exchange._inside.write(self._inward(data))
        await self._exchange._inside.write(self._scrubber.rest())


def _reason(status: int) -> bytes:
    """What stands behind a status; some clients take a line without it for none."""
    try:
        return HTTPStatus(status).phrase.encode()
    except ValueError:
        return b"Unknown"


def _bounded(url: str) -> str:
    """Another text for another URL, however long that is."""
    return url if len(url) <= URL_MAX else f"{url[:URL_MAX]}#{sha256(url.encode()).hexdigest()}"


async def serve(works: Works, tokens: Tokens, link: Link, sock: Any) -> None:
    """Everything that comes over one stream."""
    context = works.authority.context(link.host) if link.tls else None
    try:
        async with asyncio.timeout(HANDSHAKE_S):
            inside = await Wire.accept(sock, context)
    except (OSError, TimeoutError):
        return
    await Exchange(works, tokens, link, inside).run()
