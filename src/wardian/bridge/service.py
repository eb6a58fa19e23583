"""The server's half of the bridge: what sandboxes, the network and the API see of it.

It hands streams over with who they came from, decides on every request, and keeps what must outlive the
process. It can seal secrets and cannot open one.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import socket
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

from wardian.bridge import admission, equipping, searching
from wardian.bridge.budgets import Budgets, Used
from wardian.bridge.channel import Answer, BridgeGone, Channel, Facts
from wardian.bridge.effects import Ledger, response_of, response_values
from wardian.bridge.grants import Grants
from wardian.bridge.passes import Holder, Inspector, Mint
from wardian.bridge.retention import USUAL, Retention, Sweeper
from wardian.bridge.supervisor import COMMAND, Hello, Keys, Supervisor
from wardian.bridge.values import place_values, sealed_of, sealed_values
from wardian.guest.guest import Guest, Tunnel
from wardian.guest.pace import Bucket
from wardian.model.effect import Effect, EffectState
from wardian.model.egress import name_of
from wardian.model.errors import Forbidden, Invalid, Unavailable, WardianError
from wardian.model.grant import BRIDGE_HOST, Grant, Injection
from wardian.model.sandbox import LIVE, Sandbox, State
from wardian.model.secret import Place, Sealed
from wardian.network.outbound import PlainRemote, join
from wardian.snapshots.scan import Report
from wardian.store.database import Database
from wardian.store.secrets import key_ids
from wardian.vault.keys import SealingKey
from wardian.vault.vault import VERSIONS_KEPT, Vault

BRIDGE_PORT = 80
BRIDGE_ADDRESS = "198.19.255.254"
"""What the bridge's name means inside; like all stand-ins an address that exists nowhere."""
_STAND_INS = int(IPv4Address("198.19.0.0"))
_STAND_INS_SIZE = 0xFF00
LEDGER_BODY_MAX = 8 << 20
"""Of a request whose effect is kept in the ledger: longer ones are refused, not half-remembered."""
BEGINNING_S = 10.0
"""How long a stream of a sandbox that is just being created or resumed waits for it."""
EVENTS_BURST, EVENTS_PER_S = 256.0, 50.0
TOLD_MAX = 1 << 16
"""Names below wildcards, remembered by the address that was told for them; who asks again is told again."""
PATH_NOTED = 2048
"""Characters of a path that go into the event log; all of it is judged."""
_GAUGES_MAX = 4096
Dial = Callable[[Sandbox, str, int, str | None], Awaitable[socket.socket]]
"""Finds a host for a sandbox and connects to it, at that address if one is told, if the server's policy lets
it. OSError."""
Judge = Callable[[Sandbox, str, int, str, str], Awaitable[str | None]]
"""Whether the sandbox's own rules let a request go out: host, port, method and target; the address that it
must go to, if any matters. OSError with a ``reason``."""
Record = Callable[[str, str, Mapping[str, Any]], None]
Locate = Callable[[str], Sandbox | None]


@dataclass(frozen=True, slots=True)
class Crossing:
    """A connection that the bridge takes: ``base`` to its own name, else in the place of ``host``."""

    host: str
    port: int
    base: bool
    tls: bool


class Bridge:
    """One for a server. Made by :meth:`open`; ``attach`` before the first sandbox runs."""

    def __init__(
        self,
        database: Database,
        grants: Grants,
        mint: Mint,
        supervisor: Supervisor,
        now_us: Callable[[], int],
        retention: Retention = USUAL,
    ) -> None:
        self.grants, self.ledger, self.budgets = grants, Ledger(database, now_us), Budgets(database)
        self._mint, self._supervisor, self._now_us = mint, supervisor, now_us
        self.sweeper = Sweeper(database, retention, self._forget, now_us)
        self._tokens = Inspector(mint.public)
        self._gauges: dict[str, Bucket] = {}
        self._told: OrderedDict[tuple[str, str], str] = OrderedDict()  # (sandbox, address): the name
        self._vault: Vault | None = None
        self._dial: Dial | None = None
        self._judge: Judge | None = None
        self._locate: Locate = lambda sandbox_id: None
        self._record: Record = lambda sandbox_id, kind, facts: None
        self.ca = ""

    @classmethod
    async def open(
        cls,
        database: Database,
        directory: Path,
        mint: Mint,
        keys: Keys,
        now_us: Callable[[], int],
        trust: str = "",
        retention: Retention = USUAL,
        command: Sequence[str] = COMMAND,
    ) -> Bridge:
        """Start the process. ``trust``: certificates (PEM) of upstreams beside the public ones.

        Raises :class:`Unavailable`.
        """
        grants = await Grants.open(database, now_us)

        async def configure(channel: Channel) -> None:
            await channel.ask("configure", token_key=mint.public, trust=trust)

        async def handle(what: str, facts: Facts, sock: socket.socket | None) -> Answer:
            return await bridge._handle(what, facts)

        supervisor = Supervisor(
            directory, keys, handle, configure, lambda: bridge.ledger.interrupted(), command
        )
        bridge = cls(database, grants, mint, supervisor, now_us, retention)
        await bridge.budgets.load()
        sealed = await database.read(key_ids)
        hello = await supervisor.start(may_make_key=not sealed)
        try:
            bridge.ca, bridge._vault = hello.ca, await bridge._open_vault(database, hello)
        except BaseException:
            await supervisor.close()
            raise
        return bridge

    async def _open_vault(self, database: Database, hello: Hello) -> Vault:
        previous, _ = await self._supervisor.channel.ask("previous")

        async def reseal(place: Place, sealed: Sealed) -> Sealed:
            told, _ = await self._supervisor.channel.ask(
                "reseal", **place_values(place), sealed=sealed_values(sealed)
            )
            return sealed_of(told)

        return await Vault.open(database, SealingKey(hello.key), previous["key_ids"], reseal)

    @property
    def vault(self) -> Vault:
        assert self._vault is not None
        return self._vault

    @property
    def pid(self) -> int | None:
        """Of the process that runs now."""
        return self._supervisor.pid

    def attach(self, *, dial: Dial, judge: Judge, locate: Locate, record: Record) -> None:
        """Join it to the network, the sandboxes, and their logs."""
        self._dial, self._judge, self._locate, self._record = dial, judge, locate, record

    async def close(self) -> None:
        await self._supervisor.close()

    async def _forget(self, effects: Sequence[str]) -> None:
        await self._supervisor.channel.ask("forget", effects=list(effects))

    # ── for sandboxes

    def grants_of(self, sandbox: Sandbox) -> Sequence[Grant]:
        """The narrowest first."""
        found = [
            grant
            for grant in self.grants.of(sandbox.tenant)
            if grant.is_for(
                sandbox.tenant, sandbox.id, agent_of(sandbox), run_of(sandbox), sandbox.spec.agent
            )
        ]
        return sorted(
            found,
            key=lambda each: (
                each.sandbox is None,
                each.run is None,
                each.agent is None,
                each.template is None,
                each.is_wildcard,
            ),
        )

    def environment(self, sandbox: Sandbox, epoch: int | None = None) -> Mapping[str, str]:
        """What every process of the sandbox finds in its environment; nothing without a grant."""
        grants = self.grants_of(sandbox)
        return equipping.environment_of(grants, self._token(sandbox, epoch)) if grants else {}

    def judge(self, token: str, sandbox: Sandbox) -> str:
        """Whether a run token may speak for a sandbox: ``ok``, or a slug that says why not."""
        return self._tokens.check(token, holder_of(sandbox))

    def files(self, sandbox: Sandbox, epoch: int) -> Mapping[str, tuple[int, bytes]]:
        """The file with the run token, for whoever holds on longer than to one epoch."""
        if sandbox.spec.run is None and not self.grants_of(sandbox):
            return {}
        return {equipping.TOKEN_FILE: (0o644, self._token(sandbox, epoch).encode())}

    async def equip(self, guest: Guest, sandbox: Sandbox) -> None:
        """Have programs inside trust the bridge where it stands in for others."""
        if any(grant.intercept and grant.tls for grant in self.grants_of(sandbox)):
            await equipping.trust(guest, self.ca)

    def _token(self, sandbox: Sandbox, epoch: int | None) -> str:
        return self._mint.make(holder_of(sandbox, epoch))

    # ── for the network

    def stand_in(self, sandbox: Sandbox, name: str) -> str | None:
        """The address by which a sandbox knows the bridge, or a host that the bridge stands in for."""
        if name == BRIDGE_HOST:
            return BRIDGE_ADDRESS if self.grants_of(sandbox) else None
        if name_of(name) != name:
            return None
        grants = [grant for grant in self.grants_of(sandbox) if grant.intercept and grant.covers(name)]
        if not grants:
            return None
        address = stand_in_address(name)
        if all(grant.is_wildcard for grant in grants):
            self._told[sandbox.id, address] = name
            if len(self._told) > TOLD_MAX:
                self._told.popitem(last=False)
        return address

    def crossing(self, sandbox: Sandbox, address: str, port: int) -> Crossing | None:
        """What the bridge makes of a connection; None: it is none of its business."""
        if address == BRIDGE_ADDRESS and port == BRIDGE_PORT and self.grants_of(sandbox):
            return Crossing(BRIDGE_HOST, port, base=True, tls=False)
        told = self._told.get((sandbox.id, address))
        for grant in self.grants_of(sandbox):
            host = told if grant.is_wildcard else grant.host
            if host is None or not grant.intercept or grant.port != port or not grant.covers(host):
                continue
            if stand_in_address(host) == address:
                return Crossing(host, port, base=False, tls=grant.tls)
        return None

    async def carry(self, sandbox: Sandbox, crossing: Crossing, tunnel: Tunnel) -> None:
        """Hand a stream to the bridge, and carry its bytes. OSError when there is none."""
        sandbox = await self._begun(sandbox)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        ours.setblocking(False)
        try:
            self._supervisor.channel.tell(
                "stream",
                theirs,
                holder=_holder_values(holder_of(sandbox)),
                host=crossing.host,
                port=crossing.port,
                base=crossing.base,
                tls=crossing.tls,
            )
        except BridgeGone:
            ours.close()
            theirs.close()
            raise ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED)) from None
        await join(PlainRemote(ours), tunnel)

    async def _begun(self, sandbox: Sandbox) -> Sandbox:
        """The sandbox once its epoch is what its link says: a restored program may be faster than that."""
        deadline = asyncio.get_running_loop().time() + BEGINNING_S
        while (now := self._locate(sandbox.id)) is not None and now.state in (State.CREATING, State.RESUMING):
            if asyncio.get_running_loop().time() > deadline:
                break
            await asyncio.sleep(0.002)
        if now is None or now.state not in LIVE | {State.PAUSING}:
            raise ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
        return now

    # ── searches

    async def search(
        self, tenant: str, paths: Sequence[Path], canaries: Sequence[bytes], fingerprints: bytes
    ) -> Report:
        """Search files for every kept version of a tenant's secrets, and for canaries.

        ``fingerprints`` is the key by which the report names values. Raises :class:`Unavailable`.
        """
        secrets = await self._every_version(tenant)
        if not secrets and not canaries:
            return Report(sources={path.name: path.stat().st_size for path in paths})
        ours, theirs = socket.socketpair()
        with ours:
            asking = asyncio.ensure_future(self._supervisor.channel.ask("search", theirs))
            try:
                await asyncio.to_thread(searching.send, ours, paths, secrets, canaries, fingerprints)
                report = await asyncio.to_thread(searching.receive, ours)
            except OSError:
                report = None
            await asking
        if report is None:
            raise Unavailable("the search broke off", code="search_broke_off", hint="try again")
        return report

    async def _every_version(self, tenant: str) -> Sequence[tuple[str, Place]]:
        found: list[tuple[str, Place]] = []
        after: str | None = None
        while page := await self.vault.list(tenant, after=after, limit=100):
            after = page[-1].name
            for secret in page:
                first = max(1, secret.version - VERSIONS_KEPT + 1)
                found += [
                    (f"secret:{secret.name}:{version}", Place(tenant, secret.id, version))
                    for version in range(first, secret.version + 1)
                ]
        return found

    # ── for the process

    async def _handle(self, what: str, facts: Facts) -> Answer:
        match what:
            case "admit":
                return await self._admit(facts), None
            case "dial":
                return {}, await self._dial_for(facts)
            case "sealed":
                _, sealed = await self.vault.sealed(facts["tenant"], facts["secret"], facts["version"])
                return sealed_values(sealed), None
            case "intend":
                return await self._intend(facts), None
            case "record":
                await self.ledger.record(facts["effect"], response_of(dict(facts)))
            case "unsent":
                await self.ledger.unsent(facts["effect"])
            case "delivered":
                self.ledger.delivered(facts["effect"])
            case "broke_off":
                self.ledger.broke_off(facts["effect"])
            case "answered":
                self._answered(facts)
            case "renewed":
                return await self._renewed(facts), None
            case _:
                raise Invalid(f"unknown: {what}")
        return {}, None

    def _sandbox(self, sandbox_id: str, epoch: int | None = None) -> Sandbox:
        sandbox = self._locate(sandbox_id)
        if sandbox is None or sandbox.state not in LIVE | {State.PAUSING}:
            raise Forbidden("the sandbox is not running", code="sandbox_not_running")
        if epoch is not None and sandbox.epoch != epoch:
            raise Forbidden("the sandbox was restored meanwhile", code="link_of_another_epoch")
        return sandbox

    async def _admit(self, facts: Facts) -> Facts:
        """Decide on one request, and record why."""
        sandbox = self._sandbox(facts["sandbox"], facts["epoch"])
        event: dict[str, Any] = {name: facts[name][:PATH_NOTED] for name in ("method", "host", "path")}
        try:
            grant, target = admission.find(self.grants_of(sandbox), facts)
            event |= {"grant": grant.name, "host": grant.host}
            admission.check(facts["verdict"], grant)
            admission.check_branch(sandbox, grant, facts)
            address = await self._check_egress(sandbox, grant, facts["method"], target)
            await self.budgets.admit(holder_of(sandbox), sandbox.spec.run_line)
            version = await self.vault.current(sandbox.tenant, grant.secret_id)
        except WardianError as error:
            self._note(sandbox.id, {**event, "allowed": False, "reason": error.code})
            raise
        reason = "run_token" if facts["verdict"] == "ok" else "link"
        self._note(sandbox.id, {**event, "allowed": True, "reason": reason})
        return {
            "grant": grant.id,
            "target": target,
            "host": grant.host,
            "port": grant.port,
            "address": address,
            "tls": grant.tls,
            "admission": grant.admission.value,
            "in_doubt": grant.in_doubt.value,
            "ledger_body_max": LEDGER_BODY_MAX,
            "injector": {
                "kind": grant.injector.kind.value,
                "header": grant.injector.header,
                "template": grant.injector.template,
                "user": grant.injector.user,
                "query": grant.injector.query,
                "region": grant.injector.region,
                "service": grant.injector.service,
            },
            "secret": {"tenant": sandbox.tenant, "secret": grant.secret_id, "version": version},
        }

    async def _check_egress(self, sandbox: Sandbox, grant: Grant, method: str, target: str) -> str | None:
        """A grant says what may be used, the sandbox's rules what may be reached: it takes both."""
        assert self._judge is not None
        try:
            return await self._judge(sandbox, grant.host, grant.port, method, target)
        except OSError as error:
            reason = getattr(error, "reason", "denied")
            raise Forbidden(
                f"the egress of this sandbox does not let it ask {grant.host} for {method} {target[:200]}: "
                f"{reason}",
                code=reason,
                hint="a grant opens hosts with egress 'granted' and 'internet'; `wardian egress show` has "
                "the rules",
            ) from None

    def _grant(self, sandbox: Sandbox, grant_id: str) -> Grant:
        found = next((each for each in self.grants_of(sandbox) if each.id == grant_id), None)
        if found is None:
            raise Forbidden("the grant was withdrawn", code="grant_not_found")
        return found

    async def _dial_for(self, facts: Facts) -> socket.socket:
        sandbox = self._sandbox(facts["sandbox"])
        assert self._dial is not None
        self._check_destination(sandbox, facts["host"], facts["port"])
        try:
            return await self._dial(sandbox, facts["host"], facts["port"], facts["address"])
        except OSError as error:
            reason = getattr(error, "reason", None)
            code = "upstream_denied" if reason else "upstream_unreachable"
            self._note(
                sandbox.id,
                {"host": facts["host"], "port": facts["port"], "allowed": False, "reason": reason or code},
            )
            raise Forbidden(
                f"{facts['host']} cannot be reached: {reason or error.strerror or 'no answer'}", code=code
            ) from None

    def _check_destination(self, sandbox: Sandbox, host: str, port: int) -> None:
        """What the bridge says is believed as far as the sandbox's grants go: one that was taken over has
        nowhere else to go. Where tokens are fetched only the secret says."""
        for grant in self.grants_of(sandbox):
            if grant.injector.kind is Injection.OAUTH2 or (grant.port == port and grant.covers(host)):
                return
        raise Forbidden(f"no grant leads to {host[:253]}:{port}", code="not_granted")

    async def _intend(self, facts: Facts) -> Facts:
        sandbox = self._sandbox(facts["sandbox"])
        grant, now = self._grant(sandbox, facts["grant"]), self._now_us()
        asked = Effect(
            id="",
            tenant=sandbox.tenant,
            sandbox=sandbox.id,
            run=run_of(sandbox),
            step=facts["step"],
            ordinal=0,
            grant=grant.name,
            method=facts["method"],
            url=facts["url"],
            digest=facts["digest"],
            state=EffectState.INTENDED,
            epoch=sandbox.epoch,
            created_at=now,
            updated_at=now,
        )
        try:
            intent = await self.ledger.intend(asked, grant.in_doubt, speculative=sandbox.spec.speculative)
        except WardianError as error:
            self._note(sandbox.id, {"grant": grant.name, "allowed": False, "reason": error.code})
            raise
        replay = None if intent.replay is None else response_values(intent.replay)
        if replay is not None:
            self._note(
                sandbox.id,
                {"grant": grant.name, "allowed": True, "reason": "replayed", "effect": intent.effect},
            )
        return {"effect": intent.effect, "key": intent.key, "replay": replay}

    def _answered(self, facts: Facts) -> None:
        with suppress(WardianError):
            sandbox = self._sandbox(facts["sandbox"])
            used = Used(
                facts["bytes_out"],
                facts["bytes_in"],
                facts["model"],
                facts["tokens_in"],
                facts["tokens_out"],
            )
            self.budgets.spend(holder_of(sandbox), used, sandbox.spec.run_line)
            told = {name: value for name, value in facts.items() if name != "sandbox" and value}
            self._note(sandbox.id, told, "bridge.answer")

    async def _renewed(self, facts: Facts) -> Facts:
        place = Place(facts["tenant"], facts["secret"], facts["version"])
        new = await self.vault.follow(place, sealed_of(facts["sealed"]))
        return {"version": place.version if new is None else new.version}

    def _note(self, sandbox_id: str, event: Mapping[str, Any], kind: str = "bridge.request") -> None:
        gauge = self._gauges.get(sandbox_id)
        if gauge is None:
            if len(self._gauges) >= _GAUGES_MAX:
                del self._gauges[next(iter(self._gauges))]
            gauge = self._gauges[sandbox_id] = Bucket(EVENTS_BURST, EVENTS_PER_S)
        if gauge.take():
            self._record(sandbox_id, kind, event)


def agent_of(sandbox: Sandbox) -> str:
    """What a grant calls the kind of sandbox this is: its template's alias, or id."""
    return sandbox.template_alias or sandbox.template_id


def run_of(sandbox: Sandbox) -> str:
    """What grants, budgets and the ledger call the run that a sandbox belongs to."""
    return sandbox.spec.run or sandbox.id


def holder_of(sandbox: Sandbox, epoch: int | None = None) -> Holder:
    """A sandbox that is no run's machine is a run of its own."""
    return Holder(
        tenant=sandbox.tenant,
        agent=agent_of(sandbox),
        run=run_of(sandbox),
        sandbox=sandbox.id,
        epoch=sandbox.epoch if epoch is None else epoch,
    )


def stand_in_address(host: str) -> str:
    """The same for a host in every sandbox, and after every restart. Two hosts may share one: then what
    the program says it wants decides, or the handshake fails."""
    number = int.from_bytes(hashlib.sha256(host.encode()).digest()[:4]) % _STAND_INS_SIZE
    return str(IPv4Address(_STAND_INS + number))


def _holder_values(holder: Holder) -> Mapping[str, Any]:
    return {name: getattr(holder, name) for name in Holder.__dataclass_fields__}
