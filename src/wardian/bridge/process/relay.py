"""One request on its way to an upstream, and its answer on its way back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import h11

from wardian.bridge.channel import BridgeGone
from wardian.bridge.process.asked import Asked
from wardian.bridge.process.inject import Injected
from wardian.bridge.process.ledger import Entry
from wardian.bridge.process.program import HEAD_MAX, Ended, Program
from wardian.bridge.process.scrub import JSON_MAX, Scrubber, seal_tokens
from wardian.bridge.process.usage import UsageReader
from wardian.bridge.process.works import Wire, Works

HEAD_S = 900.0
"""How long an upstream may think before it answers."""
LAST_BYTES_S = 5.0
"""How long the rest of a request may take once its answer is complete."""
OUT_MAX = 64 * 1024
"""Bytes of an answer that wait for what comes with them."""
_NOT_PASSED_IN = frozenset({"set-cookie", "set-cookie2", "alt-svc", "keep-alive", "proxy-connection"})


class Relay:
    """``refused`` is called when the upstream does not take the credential."""

    def __init__(
        self,
        works: Works,
        sandbox: str,
        program: Program,
        asked: Asked,
        injected: Injected,
        upstream: Wire,
        entry: Entry | None,
        refused: Callable[[], None],
    ) -> None:
        self._works, self._sandbox, self._program = works, sandbox, program
        self._asked, self._injected = asked, injected
        self._upstream, self._entry, self._refused = upstream, entry, refused
        self._conn = h11.Connection(h11.CLIENT, max_incomplete_event_size=HEAD_MAX)
        self._scrubber = Scrubber(injected.hidden)
        self._bytes_out = self._bytes_in = 0
        self._status = 0
        self._gone = self._delivered = False
        self._left, self._last = -1, b""  # of a body whose length is told
        self._out = bytearray()  # for the program, with what comes next
        self._usage = UsageReader("")

    async def run(self, body: bytes | None) -> bool:
        """``body`` is there if it had to be read; else it goes on as it comes. The server is told what
        happened. True: the upstream's connection is good for another request.
        """
        head = h11.Request(
            method=self._asked.method, target=self._injected.target, headers=list(self._injected.headers)
        )
        sending: asyncio.Task[None] | None = None
        try:
            await self._upstream.write(self._conn.send(head))
            sending = asyncio.create_task(self._send_body(body))
            sending.add_done_callback(self._sent)
            return await self._receive(sending)
        finally:
            if sending is not None and not sending.done():
                sending.cancel()
                with suppress(asyncio.CancelledError, Exception):
                    await sending
            self._account()

    def _account(self) -> None:
        usage = self._usage.end()
        with suppress(BridgeGone):
            if self._entry is not None:
                said = "delivered" if self._delivered else "broke_off"
                self._works.channel.tell(said, effect=self._entry.id)
            self._works.channel.tell(
                "answered",
                sandbox=self._sandbox,
                grant=self._asked.facts["grant"],
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
            while not isinstance(event := await self._program.event(), h11.EndOfMessage):
                if not isinstance(event, h11.Data):
                    raise Ended
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
            await self._flush()
            async with asyncio.timeout(HEAD_S):
                self._conn.receive_data(await self._upstream.read())
        return event

    async def _receive(self, sending: asyncio.Task[None]) -> bool:
        """Pass the answer on. True: the upstream's connection is good for another request."""
        event = await self._next()
        while isinstance(event, h11.InformationalResponse):
            if event.status_code == 101:
                await self._switch(event)
                return False
            event = await self._next()
        if not isinstance(event, h11.Response):
            raise ConnectionResetError("no answer")
        self._works.checkpoint("answer_begun")
        self._status = event.status_code
        if event.status_code == 401:
            self._refused()
        headers = self._headers(event)
        content_type = next((value for name, value in headers if name == "content-type"), "")
        self._usage = UsageReader(content_type)
        reason = event.reason
        first, event = await self._sealed(headers, content_type)
        self._program.answered = True
        self._left = int(next((value for name, value in headers if name == "content-length"), -1))
        response = h11.Response(status_code=self._status, headers=headers, reason=reason)
        await self._write(self._program.coded(response) + self._pass(first))
        while isinstance(event, h11.Data):
            await self._write(self._pass(self._take(event)))
            event = await self._next()
        await self._finish(headers)
        if not sending.done():
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
        coded = self._program.coded(h11.Data(data))
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
        rest = self._pass(self._scrubber.rest())
        if self._entry is not None:
            await self._flush()
            self._works.checkpoint("before_record")
            await self._works.channel.ask(
                "record",
                effect=self._entry.id,
                **self._entry.recorded(self._status, headers, self._works.blobs),
            )
            self._works.checkpoint("after_record")
        await self._write(self._last + rest + self._program.coded(h11.EndOfMessage()))
        await self._flush()
        if self._gone:
            raise Ended
        self._delivered = True

    async def _write(self, data: bytes) -> None:
        """To the program, together with what is there already; nothing waits for what is still to come."""
        self._out += data
        if len(self._out) > OUT_MAX:
            await self._flush()

    async def _flush(self) -> None:
        """If the program is gone, an answer that belongs on record is read to its end all the same."""
        data, self._out = self._out, bytearray()
        if self._gone or not data:
            return
        try:
            await self._program.wire.write(bytes(data))
        except OSError:
            if self._entry is None:
                raise
            self._gone = True

    async def _switch(self, event: h11.InformationalResponse) -> None:
        """WebSocket, or whatever both sides agreed on: bytes from here on."""
        self._status = 101
        self._program.answered = True
        headers = [
            (name, value) for name, value in event.headers if name.decode().lower() not in _NOT_PASSED_IN
        ]
        answer = h11.InformationalResponse(status_code=101, headers=headers, reason=event.reason)
        await self._program.wire.write(self._program.coded(answer))
        early_in, _ = self._conn.trailing_data
        early_out = self._program.early
        await self._upstream.write(early_out)
        await self._program.wire.write(self._inward(early_in))
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
        while data := await self._program.wire.read():
            self._bytes_out += len(data)
            await self._upstream.write(data)

    async def _pump_in(self) -> None:
        while data := await self._upstream.read():
            await self._program.wire.write(self._inward(data))
        await self._program.wire.write(self._scrubber.rest())
