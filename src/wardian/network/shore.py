"""The shore: where sandboxes meet the network. Has the gate decide, records, and then carries or resolves."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from wardian.guest.guest import Tunnel
from wardian.guest.pace import Bucket
from wardian.model.egress import Egress
from wardian.model.errors import Invalid
from wardian.model.sandbox import Sandbox
from wardian.network import socks
from wardian.network.dns import QUERY_MAX, Resolver, View
from wardian.network.gate import Denied, Gate, Route, Unseal
from wardian.network.outbound import PlainRemote, Watch, join
from wardian.network.policy import Decision, Policy
from wardian.network.rules import Request, rules_of
from wardian.network.told import Told

Record = Callable[[str, Mapping[str, object]], None]
"""Takes a sandbox's id and what happened: ``kind`` (connect, resolve, cut), ``reason``, details."""

CONNECTIONS_MAX = 256
LOOKUPS_MAX = 8
RECORDS_BURST, RECORDS_PER_S = 64.0, 10.0
DNS_PORT = 53
DNS_IDLE_S = 30.0
_GAUGES_MAX = 4096


@dataclass(slots=True)
class _Gauge:
    """How much one sandbox has had recorded of late: a flood must not become one of records."""

    bucket: Bucket = field(default_factory=lambda: Bucket(RECORDS_BURST, RECORDS_PER_S))
    unrecorded: int = 0


@dataclass(eq=False, slots=True)
class _Live:
    """A connection under way; ``route`` is None until it is admitted."""

    address: str
    port: int
    task: asyncio.Task[object]
    route: Route | None = None
    cut: bool = False


class Diversion(Protocol):
    """Takes some connections out of our hands, and stands in for some hosts: the bridge."""

    def stand_in(self, sandbox: Sandbox, name: str) -> str | None: ...

    def crossing(self, sandbox: Sandbox, address: str, port: int) -> Any | None:
        """What it makes of a connection; None leaves it to us."""

    async def carry(self, sandbox: Sandbox, crossing: Any, tunnel: Tunnel) -> None: ...


class NoDiversion:
    """A server without a bridge."""

    def stand_in(self, sandbox: Sandbox, name: str) -> str | None:
        return None

    def crossing(self, sandbox: Sandbox, address: str, port: int) -> Any | None:
        return None

    async def carry(self, sandbox: Sandbox, crossing: Any, tunnel: Tunnel) -> None:
        raise Denied("no_bridge")


def no_secrets(sealed: str, context: str) -> str:
    """For a shore that was given no key: nothing that is sealed can be used."""
    raise Denied("no_key")


class Shore:
    """One for all sandboxes of a server.

    ``record`` is called for every decision but, in a flood, not for every one: those left out are counted in
    the next one's ``unrecorded``. ``unseal`` opens what a proxy's password was sealed into. ``door`` is the
    platform's own, which no rule of a tenant's closes.
    """

    def __init__(
        self,
        policy: Policy,
        record: Record,
        *,
        resolver: Resolver | None = None,
        unseal: Unseal = no_secrets,
        bridge: Diversion | None = None,
        door: Diversion | None = None,
    ) -> None:
        self._bridge, self._door = bridge or NoDiversion(), door or NoDiversion()
        self._record = record
        self._resolver = resolver or Resolver()
        self._told = Told()
        self._gate = Gate(policy, self._resolver, self._told, unseal)
        self._live: dict[str, set[_Live]] = {}
        self._lookups: Counter[str] = Counter()
        self._gauges: dict[str, _Gauge] = {}

    def close(self) -> None:
        """Stop resolving. Connections end with their guests."""
        self._resolver.close()

    # ── rules

    def allows(self, address: str, port: int) -> bool:
        """Whether the server lets anybody connect there."""
        return self._gate.server_allows(address, port).allowed

    async def check(self, egress: Egress) -> None:
        """Refuse rules that lead where the server lets nobody go: DNS servers, a proxy. Raises Invalid."""
        for server in egress.dns_servers or ():
            if not (decision := self._gate.server_allows(server, DNS_PORT)).allowed:
                raise Invalid(
                    f"DNS server {server} may not be reached: {decision.reason}", code="dns_server_denied"
                )
        if egress.proxy is None:
            return
        try:
            socks.tls_context(egress.proxy)
        except (OSError, ValueError):
            raise Invalid("egressProxy.tls.caCert holds no PEM certificates", code="bad_ca_cert") from None
        try:
            await self._gate.proxy_address(egress.proxy)
        except Denied as error:
            raise Invalid(
                f"egress proxy {egress.proxy.address} may not be reached: {error.reason}",
                code="egress_proxy_denied",
                hint="it must resolve, and not into a private or internal range",
            ) from None

    def changed(self, sandbox: Sandbox) -> None:
        """A sandbox's rules are others now: cut what they forbid, and what the old still decide."""
        for live in list(self._live.get(sandbox.id, ())):
            if live.route is None or not self._gate.still(sandbox, live.address, live.route):
                live.cut = True
                live.task.cancel()

    def forget(self, sandbox_id: str) -> None:
        """A sandbox is gone."""
        self._told.forget(sandbox_id)
        self._gauges.pop(sandbox_id, None)

    # ── connections

    async def connect(self, sandbox: Sandbox, address: str, port: int, stream: Tunnel) -> None:
        """Relay ``stream`` to its destination until it ends. OSError: it may not go there, or cannot."""
        task = asyncio.current_task()
        assert task is not None
        live = _Live(address, port, task)
        if len(self._live.get(sandbox.id, ())) >= CONNECTIONS_MAX:
            self._note_connect(sandbox, live, Decision(False, "too_many_connections"))
            raise Denied("too_many_connections")
        with self._listed(sandbox.id, live):
            try:
                if port == DNS_PORT:
                    await self._resolve_over_tcp(sandbox, stream)
                else:
                    await self._carry(sandbox, live, stream)
            except asyncio.CancelledError:
                if not live.cut or task.uncancel():
                    raise
                self._note(
                    sandbox.id, {"kind": "cut", "address": address, "port": port, "reason": "rules_changed"}
                )
                raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET)) from None

    async def _carry(self, sandbox: Sandbox, live: _Live, stream: Tunnel) -> None:
        if await self._divert(self._door, "door", sandbox, live, stream):
            return
        granted = rules_of(sandbox.spec).may_open_granted
        if granted and await self._divert(self._bridge, "bridge", sandbox, live, stream):
            return
        try:
            route = live.route = await self._gate.admit(sandbox, live.address, live.port, stream)
        except Denied as error:
            self._note_connect(sandbox, live, Decision(False, error.reason), error.name)
            raise
        self._note_connect(sandbox, live, Decision(True, route.reason), route.name)

        async def first() -> tuple[bytes, Watch | None]:
            if not route.late:
                return route.head, route.watch
            return await self._gate.late_opening(sandbox, route, stream)

        try:
            remote = await self._gate.dial(route)
            await join(remote, stream, first)
        except Denied as error:
            self._note_connect(sandbox, live, Decision(False, error.reason), error.name)
            raise

    async def _divert(
        self, diversion: Diversion, reason: str, sandbox: Sandbox, live: _Live, stream: Tunnel
    ) -> bool:
        """Whether it took the connection, and has carried it to its end."""
        crossing = diversion.crossing(sandbox, live.address, live.port)
        if crossing is None:
            return False
        live.route = Route(live.address, live.port, reason)
        self._note_connect(sandbox, live, Decision(True, reason))
        await diversion.carry(sandbox, crossing, stream)
        return True

    def _note_connect(
        self, sandbox: Sandbox, live: _Live, decision: Decision, name: str | None = None
    ) -> None:
        event: dict[str, object] = {
            "kind": "connect",
            "address": live.address,
            "port": live.port,
            "allowed": decision.allowed,
            "reason": decision.reason,
        }
        if name is not None:
            event["name"] = name
        self._note(sandbox.id, event)

    @contextmanager
    def _listed(self, sandbox_id: str, live: _Live) -> Iterator[None]:
        lives = self._live.setdefault(sandbox_id, set())
        lives.add(live)
        try:
            yield
        finally:
            lives.discard(live)
            if not lives:
                self._live.pop(sandbox_id, None)

    # ── names

    async def resolve(self, sandbox: Sandbox, query: bytes) -> bytes:
        """Answer a DNS query packet. OSError for what is none, or one too many."""
        if self._lookups[sandbox.id] >= LOOKUPS_MAX:
            raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        with _counted(self._lookups, sandbox.id):
            answer = await self._resolver.answer(query, self._view(sandbox))
        if answer.addresses:
            self._told.note(sandbox.id, answer.name, answer.addresses)
        allowed = answer.outcome in ("resolved", "granted")
        self._note(
            sandbox.id, {"kind": "resolve", "name": answer.name, "allowed": allowed, "reason": answer.outcome}
        )
        return answer.packet

    def _view(self, sandbox: Sandbox) -> View:
        view = self._gate.view(sandbox)
        granted = rules_of(sandbox.spec).may_open_granted

        def stand_in(name: str) -> str | None:
            bridge = self._bridge.stand_in(sandbox, name) if granted else None
            return self._door.stand_in(sandbox, name) or bridge or view.stand_in(name)

        return replace(view, stand_in=stand_in)

    async def admit_granted(
        self, sandbox: Sandbox, host: str, port: int, method: str, target: str
    ) -> str | None:
        """Whether the sandbox's rules let the bridge make a request for it, to a host that a grant names.

        The address that it must go to, if any matters. :class:`Denied` with the reason.
        """
        return await self._gate.admit_granted(sandbox, host, port, Request(method, target))

    async def dial_host(
        self, sandbox: Sandbox, host: str, port: int, address: str | None = None
    ) -> socket.socket:
        """A connection to a host for the bridge, at ``address`` if one is told. The server's policy applies;
        the sandbox's rules are :meth:`admit_granted`'s. OSError; :class:`Denied` with the reason."""
        found = await self._gate.find(sandbox, host, port, address)
        remote = await self._gate.dial(Route(found, port, "bridge", host))
        assert isinstance(remote, PlainRemote)
        return remote.sock

    async def _resolve_over_tcp(self, sandbox: Sandbox, stream: Tunnel) -> None:
        """Whoever asks a DNS server over TCP is answered by us, as over UDP: one query after another."""
        stream.accept()
        pending = bytearray()

        async def take(size: int) -> bytes:
            while len(pending) < size:
                async with asyncio.timeout(DNS_IDLE_S):
                    data = await stream.read()
                if not data:
                    raise EOFError
                pending.extend(data)
            piece = bytes(pending[:size])
            del pending[:size]
            return piece

        with suppress(EOFError, TimeoutError):
            while True:
                size = int.from_bytes(await take(2))
                if size > QUERY_MAX:
                    raise OSError(errno.EMSGSIZE, os.strerror(errno.EMSGSIZE))
                packet = await self.resolve(sandbox, await take(size))
                await stream.write(len(packet).to_bytes(2) + packet)

    # ── records

    def _note(self, sandbox_id: str, event: dict[str, object]) -> None:
        gauge = self._gauges.get(sandbox_id)
        if gauge is None:
            if len(self._gauges) >= _GAUGES_MAX:
                del self._gauges[next(iter(self._gauges))]
            gauge = self._gauges[sandbox_id] = _Gauge()
        if not gauge.bucket.take():
            gauge.unrecorded += 1
            return
        if gauge.unrecorded:
            event["unrecorded"] = gauge.unrecorded
            gauge.unrecorded = 0
        self._record(sandbox_id, event)


@contextmanager
def _counted(counter: Counter[str], key: str) -> Iterator[None]:
    counter[key] += 1
    try:
        yield
    finally:
        counter[key] -= 1
        if not counter[key]:
            del counter[key]
