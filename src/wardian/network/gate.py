"""The gate: decides where one connection of a sandbox may go, and finds the way there.

An address that the sandbox's rules open is dialled as it is. Where it takes a name or a request to decide,
the connection's first bytes must show an allowed one, and everything that is said must agree: the name inside
a request with the one it is sent to, and both with the address, which our DNS gave out for that name or
*the host* finds for it now. Every further request of a plain HTTP connection is judged like the first. What
shows no name, being neither TLS nor HTTP, goes to an address that we gave out for an allowed name, on
whatever port.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from weakref import WeakValueDictionary

from wardian.guest.guest import Tunnel
from wardian.model.egress import EgressProxy, name_of
from wardian.model.errors import WardianError
from wardian.model.sandbox import Sandbox
from wardian.network import socks
from wardian.network.dns import Resolver, View
from wardian.network.opening import Opening, read_opening
from wardian.network.outbound import Remote, dial, is_own
from wardian.network.policy import Decision, Policy
from wardian.network.requests import Denied, RequestWatch
from wardian.network.rules import Request, Verdict, decide, grant_for, rules_of, stand_in
from wardian.network.told import AGREE_S, Told

OPENING_S = 10.0
"""How long a connection that needs a name may take to show it."""
SILENCE_S = 0.25
"""How long a connection to an address given out for an allowed name may say nothing before it is dialled: in
some protocols the far side speaks first."""
LOOKUPS_MAX = 8
"""Look-ups at once for the connections of one sandbox; the rest wait."""
_PIECE = 65536

Unseal = Callable[[str, str], str]

__all__ = ["Denied", "Gate", "Route", "Unseal"]


@dataclass(frozen=True, slots=True)
class Route:
    """Where an admitted connection goes, and why it may.

    ``name``: the allowed name that opened it. ``head``: bytes taken from the program already. ``late``: it
    has shown no opening yet; :meth:`Gate.late_opening` must judge its first bytes when they come. ``watch``
    judges what a plain HTTP connection says after ``head``.
    """

    address: str
    port: int
    reason: str
    name: str | None = None
    head: bytes = b""
    late: bool = False
    proxy: EgressProxy | None = None
    watch: RequestWatch | None = None


class Gate:
    """One for all sandboxes of a server."""

    def __init__(self, policy: Policy, resolver: Resolver, told: Told, unseal: Unseal) -> None:
        self._policy = policy
        self._resolver = resolver
        self._told = told
        self._unseal = unseal
        self._turns: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()

    # ── names

    def view(self, sandbox: Sandbox) -> View:
        """How a sandbox sees names."""
        rules = rules_of(sandbox.spec)
        return View(
            may_ask=rules.look_up,
            may_tell=lambda address: (
                self._policy.reach(address).allowed
                and (rules.closed or rules.address(address) is Verdict.ALLOW)
            ),
            stand_in=lambda name: stand_in(sandbox.spec.granted_hosts, name),
            servers=self._servers(sandbox),
        )

    def _servers(self, sandbox: Sandbox) -> tuple[str, ...] | None:
        """Whom to ask for this sandbox: its own servers, those of them that may be reached."""
        servers = sandbox.spec.egress.dns_servers
        if servers is None or (not servers and not rules_of(sandbox.spec).has_names):
            return None
        return tuple(server for server in servers if self.server_allows(server, 53).allowed)

    # ── decisions

    def server_allows(self, address: str, port: int) -> Decision:
        """What the server itself says of a destination, whoever asks."""
        decision = self._policy.connect(address, port)
        if decision.allowed and decision.reason != "extra_allowed" and is_own(address):
            return Decision(False, "own_address")
        return decision

    async def admit(self, sandbox: Sandbox, address: str, port: int, tunnel: Tunnel) -> Route:
        """Decide; where it takes a name, once the first bytes have shown it. Raises :class:`Denied`."""
        granted = grant_for(sandbox.spec.granted_hosts, address, port)
        if granted is not None:
            return Route(await self._home(granted.target or granted.host), port, "granted")
        rules = rules_of(sandbox.spec)
        verdict = rules.reach(address, port)
        if verdict is Verdict.DENY:
            raise Denied(decide(rules, address, port, None).reason)
        server = self.server_allows(address, port)
        if not server.allowed:
            raise Denied(server.reason)
        proxy = sandbox.spec.egress.proxy
        if verdict is Verdict.ALLOW:
            reason = decide(rules, address, port, None).reason
            return Route(address, port, server.reason if reason == "internet" else reason, proxy=proxy)
        route = await self._by_name(sandbox, address, port, tunnel)
        return replace(route, proxy=proxy)

    async def _home(self, target: str) -> str:
        """Where the host finds a granted host; no policy applies."""
        with suppress(OSError):
            socket.inet_pton(socket.AF_INET6 if ":" in target else socket.AF_INET, target)
            return target
        found = await self._resolver.look_up(target, socket.AF_INET)
        if not found.addresses:
            raise Denied("name_unresolved", target)
        return found.addresses[0]

    async def _by_name(self, sandbox: Sandbox, address: str, port: int, tunnel: Tunnel) -> Route:
        known = self._known(sandbox, address, port)
        tunnel.accept()
        head, opening = await read_first(tunnel, SILENCE_S if known else OPENING_S)
        if opening is None and not head and known:
            return Route(address, port, "allowed_name", min(known), late=True)
        name, reason = self._named(sandbox, address, port, opening)
        watch = self._watch(sandbox, address, port, opening)
        if watch is not None:
            head = watch.outward(head)
        if opening is not None and opening.name is not None:
            await self._agree(sandbox, opening.name, address)
        return Route(address, port, reason, name, head, watch=watch)

    def _known(self, sandbox: Sandbox, address: str, port: int) -> frozenset[str]:
        """The names that this sandbox was given the address for, and that open it by themselves."""
        rules = rules_of(sandbox.spec)
        told = self._told.names(sandbox.id, address)
        return frozenset(name for name in told if decide(rules, address, port, name).allowed)

    def _named(
        self, sandbox: Sandbox, address: str, port: int, opening: Opening | None
    ) -> tuple[str | None, str]:
        """The allowed name that an opening shows, or that its address stands for, and why it is allowed.

        Raises :class:`Denied`.
        """
        if opening is not None and opening.fault is not None:
            raise Denied(opening.fault)
        name = None if opening is None else opening.name
        if name is None and (known := self._known(sandbox, address, port)):
            name = min(known)
        if opening is None:
            raise Denied("no_name")
        if opening.protocol == "http" and name is not None:
            return name, "allowed_name"  # its requests are judged one by one
        decision = decide(rules_of(sandbox.spec), address, port, name)
        if not decision.allowed:
            raise Denied(decision.reason, name)
        return name, decision.reason

    async def find(self, sandbox: Sandbox, name: str, port: int, only: str | None = None) -> str:
        """Where the host finds a name now, if the server lets anybody go there. ``only``: there or nowhere.

        Raises :class:`Denied`.
        """
        for address in await self._look_up(sandbox, name):
            if only in (None, address) and self.server_allows(address, port).allowed:
                return address
        raise Denied("denied_address", name)

    async def admit_granted(self, sandbox: Sandbox, host: str, port: int, request: Request) -> str | None:
        """Decide on a request to a host that the bridge has a grant for. Raises :class:`Denied`.

        The address that it must go to, where the sandbox's rules ask addresses.
        """
        rules = rules_of(sandbox.spec)
        found: Sequence[str | None] = (None,)
        if rules.asks_addresses:
            found = await self._look_up(sandbox, host)
        decision = Decision(False, "denied_address")
        for address in found:
            if address is not None and not self.server_allows(address, port).allowed:
                continue
            decision = decide(rules, address, port, host, request, granted=True)
            if decision.allowed:
                return address
        raise Denied(decision.reason, host)

    async def _look_up(self, sandbox: Sandbox, name: str) -> Sequence[str]:
        """Every address of a name; a few at a time, so that others are found as well."""
        turns = self._turns.setdefault(sandbox.id, asyncio.Semaphore(LOOKUPS_MAX))
        async with turns:
            found = await self._resolver.look_up(name, socket.AF_INET, self._servers(sandbox))
        if not found.addresses:
            raise Denied("name_unresolved", name)
        return found.addresses

    async def _agree(self, sandbox: Sandbox, name: str, address: str) -> None:
        """Refuse a name that is shown on an address that is not its own. Raises :class:`Denied`."""
        if name == address or name in self._told.names(sandbox.id, address, within_s=AGREE_S):
            return
        if name_of(name) is None or address not in await self._look_up(sandbox, name):
            raise Denied("address_disagrees", name)

    def _watch(
        self, sandbox: Sandbox, address: str, port: int, opening: Opening | None
    ) -> RequestWatch | None:
        """Who judges the requests of a connection, if it is of plain HTTP."""
        if opening is None or opening.protocol != "http":
            return None
        rules = rules_of(sandbox.spec)

        def judge(shown: Opening, request: Request) -> None:
            if shown.name != opening.name:
                raise Denied("names_disagree", shown.name)
            decision = decide(rules, address, port, shown.name, request)
            if not decision.allowed:
                raise Denied(decision.reason, shown.name)

        return RequestWatch(judge)

    async def late_opening(
        self, sandbox: Sandbox, route: Route, tunnel: Tunnel
    ) -> tuple[bytes, RequestWatch | None]:
        """The first bytes of a connection that was silent when it was admitted, if they too may pass.

        Raises :class:`Denied`.
        """
        head, opening = await read_first(tunnel, None)
        if not head:
            return b"", None
        name, _ = self._named(sandbox, route.address, route.port, opening)
        if name is None or name not in self._known(sandbox, route.address, route.port):
            raise Denied("names_disagree", name)
        watch = self._watch(sandbox, route.address, route.port, opening)
        return (head, None) if watch is None else (watch.outward(head), watch)

    def still(self, sandbox: Sandbox, address: str, route: Route) -> bool:
        """Whether a connection that was admitted may go on under the sandbox's present rules."""
        if route.reason == "door":
            return True
        if route.reason == "bridge":  # which decides on every request anew
            return rules_of(sandbox.spec).may_open_granted
        if route.reason == "granted":
            return grant_for(sandbox.spec.granted_hosts, address, route.port) is not None
        if route.proxy != sandbox.spec.egress.proxy:
            return False
        return decide(rules_of(sandbox.spec), address, route.port, route.name).allowed

    # ── the way

    async def dial(self, route: Route) -> Remote:
        """Connect. OSError when that fails; Denied when the tenant's proxy is where nobody may go."""
        proxy = route.proxy
        if proxy is None or route.reason == "granted":
            return await dial(route.address, route.port)
        at = await self.proxy_address(proxy)
        password = None
        if proxy.sealed_password is not None:
            try:
                password = self._unseal(proxy.sealed_password, proxy.address)
            except WardianError:
                raise Denied("proxy_password_unreadable", proxy.host) from None
        return await socks.dial_through(proxy, password, at, route.name or route.address, route.port)

    async def proxy_address(self, proxy: EgressProxy) -> str:
        """Where a tenant's proxy is. Raises :class:`Denied` when it cannot be found or may not be reached."""
        hosts: list[str]
        try:
            socket.inet_pton(socket.AF_INET6 if ":" in proxy.host else socket.AF_INET, proxy.host)
            hosts = [proxy.host]
        except OSError:
            hosts = list((await self._resolver.look_up(proxy.host, socket.AF_INET)).addresses)
        for address in hosts:
            if self.server_allows(address, proxy.port).allowed:
                return address
        raise Denied("proxy_unreachable" if not hosts else "proxy_denied", proxy.host)


async def read_first(tunnel: Tunnel, patience_s: float | None) -> tuple[bytes, Opening | None]:
    """The first bytes of a connection, until they show what they are; None when they never do.

    ``patience_s`` is for the first byte; once one is there the rest may take :data:`OPENING_S`.
    """
    head, opening = b"", None
    try:
        async with asyncio.timeout(patience_s) as limit:
            while opening is None and (data := await tunnel.read(_PIECE)):
                if not head:
                    limit.reschedule(asyncio.get_running_loop().time() + OPENING_S)
                head += data
                opening = read_opening(head)
    except TimeoutError:
        pass
    return head, opening
