"""One connection of a program inside to the bridge: HTTP/1.1 requests, one after another.

For each: who asks is checked, the server decides, the secret goes in, the request goes on, and the answer
comes back as it arrives, without anything that must not be inside.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from hashlib import sha256
from typing import Any

import h11

from wardian.bridge.process.asked import Asked
from wardian.bridge.process.inject import BadSecret, Injected, inject
from wardian.bridge.process.ledger import Entry, digest_of, replayed
from wardian.bridge.process.oauth import Tokens
from wardian.bridge.process.program import Ended, Program
from wardian.bridge.process.relay import Relay
from wardian.bridge.process.upstream import Upstream
from wardian.bridge.process.works import Link, Wire, Works
from wardian.model.errors import Forbidden, Invalid, LimitExceeded, Unavailable, WardianError
from wardian.model.grant import SAFE_METHODS, Injection, Injector, injector_of
from wardian.model.secret import Place

HANDSHAKE_S = 20.0
BODY_MAX = 8 << 20
"""Of a request that must be held whole before it is signed."""

_log = logging.getLogger(__name__)


async def serve(works: Works, tokens: Tokens, link: Link, sock: Any) -> None:
    """Everything that comes over one stream."""
    context = works.authority.context(link.host) if link.tls else None
    try:
        async with asyncio.timeout(HANDSHAKE_S):
            wire = await Wire.accept(sock, context)
    except (OSError, TimeoutError):
        return
    await Exchange(works, tokens, link, Program(wire)).run()


class Exchange:
    """:meth:`run` serves a connection until it ends."""

    def __init__(self, works: Works, tokens: Tokens, link: Link, program: Program) -> None:
        self._works, self._tokens, self._link, self._program = works, tokens, link, program
        self._upstream = Upstream(works, link.holder)

    async def run(self) -> None:
        try:
            while await self._one():
                self._program.another()
        except (OSError, TimeoutError, Ended, h11.RemoteProtocolError, ssl.SSLError) as error:
            _log.debug("a connection of %s ended: %r", self._link.holder.sandbox, error)
        finally:
            self._upstream.drop()
            self._program.wire.close()

    async def _one(self) -> bool:
        """One request. False: no more can follow it."""
        program = self._program
        try:
            event = await program.event()
        except h11.RemoteProtocolError:
            await program.refuse(Invalid("this is no HTTP/1.1 request", code="bad_request"))
            return False
        if not isinstance(event, h11.Request):
            return False
        try:
            await self._handle(event)
        except (WardianError, BadSecret) as error:
            if program.answered:
                return False
            await program.refuse(error)
        except (OSError, TimeoutError, h11.RemoteProtocolError) as error:
            if program.answered:
                raise
            _log.info("%s: %r", self._link.holder.sandbox, error)
            await program.refuse(Unavailable("the upstream broke off", code="upstream_broke_off"))
        return program.may_ask_again

    async def _handle(self, event: h11.Request) -> None:
        asked = Asked.read(event, self._link)
        await self._admit(asked)
        injector = injector_of(asked.facts["injector"])
        secret, place = await self._open(asked, injector)
        await self._send_on(asked, injector, secret, place)

    async def _admit(self, asked: Asked) -> None:
        """Have the server decide. Raises what it says."""
        holder = self._link.holder
        verdict = self._works.inspector.check(asked.token, holder)
        facts, _ = await self._works.channel.ask(
            "admit",
            sandbox=holder.sandbox,
            epoch=holder.epoch,
            base=self._link.base,
            verdict=verdict,
            host=asked.host,
            port=asked.port,
            method=asked.method,
            path=asked.path,
            upgrade=asked.upgrade,
        )
        if verdict != "ok" and not (verdict == "token_missing" and facts["admission"] == "link"):
            raise Forbidden("not admitted", code=verdict)  # whatever the server says: ours is the last word
        asked.admitted(facts, base=self._link.base)

    async def _open(self, asked: Asked, injector: Injector) -> tuple[bytes, Place]:
        told = asked.facts["secret"]
        place = Place(told["tenant"], told["secret"], told["version"])
        if injector.kind is Injection.OAUTH2:
            return await self._tokens.access(self._link.holder, place), place
        return await self._works.value(place), place

    async def _send_on(self, asked: Asked, injector: Injector, secret: bytes, place: Place) -> None:
        facts, body, entry = asked.facts, None, None
        unsafe = asked.method not in SAFE_METHODS
        if unsafe and facts["in_doubt"] != "off" and not asked.upgrade:
            body = await self._whole_body(facts["ledger_body_max"])
            entry = await self._intend(asked, body)
            if entry.replay is not None:
                await self._replay(entry)
                return
        try:
            injected, body, wire = await self._prepare(asked, injector, secret, body, entry)
        except BaseException:
            if entry is not None:
                await self._works.channel.ask("unsent", effect=entry.id)
            raise
        self._works.checkpoint("before_send")
        relay = Relay(
            self._works,
            self._link.holder.sandbox,
            self._program,
            asked,
            injected,
            wire,
            entry,
            refused=lambda: self._tokens.forget(place),
        )
        good = False
        try:
            good = await relay.run(body)
        finally:
            self._upstream.used(good=good)

    async def _prepare(
        self,
        asked: Asked,
        injector: Injector,
        secret: bytes,
        body: bytes | None,
        entry: Entry | None,
    ) -> tuple[Injected, bytes | None, Wire]:
        """All that can fail before the first byte goes out. ``body`` is there if it had to be read."""
        if injector.kind is Injection.SIGV4 and not asked.header("x-amz-content-sha256") and body is None:
            body = await self._whole_body(BODY_MAX)
        injected = inject(
            injector,
            secret,
            asked.method,
            asked.target,
            asked.outgoing(entry),
            body_digest=None if body is None else sha256(body).hexdigest(),
            token=asked.token,
        )
        self._works.checkpoint("before_dial")
        fresh = asked.method not in SAFE_METHODS
        return injected, body, await self._upstream.connect(asked.facts, fresh=fresh)

    async def _whole_body(self, most: int) -> bytes:
        """All of the request's body. Raises :class:`LimitExceeded`."""
        parts = bytearray()
        while not isinstance(event := await self._program.event(), h11.EndOfMessage):
            if not isinstance(event, h11.Data):
                raise Ended
            parts += event.data
            if len(parts) > most:
                raise LimitExceeded(
                    f"the body has more than {most} bytes, too many for this grant",
                    code="body_too_large",
                    hint="a grant with in_doubt 'off' passes bodies of any size",
                )
        return bytes(parts)

    # ── the ledger

    async def _intend(self, asked: Asked, body: bytes) -> Entry:
        """Write down what is about to be done. Raises Conflict where a human must decide first."""
        told, _ = await self._works.channel.ask(
            "intend",
            sandbox=self._link.holder.sandbox,
            grant=asked.facts["grant"],
            step=asked.header("wardian-step")[:128],
            method=asked.method,
            url=asked.url,
            digest=digest_of(asked.query, asked.header("content-type"), body),
        )
        self._works.checkpoint("after_intent")
        return Entry(told["effect"], told["key"] or asked.header("idempotency-key"), told.get("replay"))

    async def _replay(self, entry: Entry) -> None:
        said = "broke_off"
        try:
            await self._program.answer(*replayed(entry.replay, self._works.blobs))
            said = "delivered"
        finally:
            self._works.channel.tell(said, effect=entry.id)
