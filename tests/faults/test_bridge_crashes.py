"""The bridge dies between any two of its writes: no effect is lost, none is doubled unasked, and what nobody
can know is told."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from wardian.bridge import effects
from wardian.bridge.passes import Mint
from wardian.bridge.retention import DAY_US, Retention, Sweeper
from wardian.bridge.service import Bridge, holder_of
from wardian.bridge.supervisor import Keys
from wardian.model.budget import Budget, Price, Scope, Unit
from wardian.model.effect import EffectState
from wardian.model.grant import Admission, Grant, InDoubt, Injection, Injector
from wardian.model.resources import Resources
from wardian.model.sandbox import Sandbox, SandboxSpec, State
from wardian.store import keys, nodes, sandboxes
from wardian.store.database import Database

POINTS = ("after_intent", "before_dial", "before_send", "answer_begun", "before_record", "after_record")
NOTHING_SENT = frozenset({"after_intent", "before_dial", "before_send"})
SECRET = "sk-crash-test-secret"
BOX = Sandbox(
    id="s1",
    tenant="t",
    template_id="base",
    template_alias="base",
    template_digest="sha256:0",
    state=State.RUNNING,
    epoch=1,
    isolation="gvisor",
    driver="gvisor",
    resources=Resources(),
    spec=SandboxSpec(),
    access_token=None,
    traffic_token=None,
    created_at=0,
    started_at=0,
    end_at=0,
)


@dataclass
class Upstream:
    """Counts what it is asked to do, and does the same key's once."""

    port: int = 0
    done: list[str] = field(default_factory=list)
    keys: set[str] = field(default_factory=set)
    answer: bytes = b'{"done": true}'
    kind: str = "text/plain"
    asked: asyncio.Event = field(default_factory=asyncio.Event)  # while it does not answer
    answering: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.answering.set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := (await reader.readuntil(b"\r\n\r\n")).decode():
                headers = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:] if line)
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                assert headers["authorization"] == f"bearer {SECRET}"
                if (key := headers.get("idempotency-key", "")) not in self.keys or not key:
                    self.done.append(body.decode())
                    self.keys.add(key)
                if not self.answering.is_set():
                    self.asked.set()
                    await self.answering.wait()
                answer = self.answer
                writer.write(
                    f"HTTP/1.1 200 OK\r\nContent-Type: {self.kind}\r\n"
                    f"Content-Length: {len(answer)}\r\n\r\n".encode()
                    + answer
                )
                await writer.drain()
        except (asyncio.IncompleteReadError, OSError):
            pass
        finally:
            writer.close()


@dataclass
class World:
    bridge: Bridge
    upstream: Upstream
    database: Database
    box: Sandbox = BOX
    events: list[Mapping[str, Any]] = field(default_factory=list)
    noted: asyncio.Condition = field(default_factory=asyncio.Condition)
    telling: list[asyncio.Task[None]] = field(default_factory=list)

    @property
    def answers(self) -> list[Mapping[str, Any]]:
        return [each for each in self.events if each["type"] == "bridge.answer"]

    def record(self, sandbox_id: str, kind: str, facts: Mapping[str, Any]) -> None:
        self.events.append({"type": kind, **facts})
        self.telling.append(asyncio.create_task(self._tell()))

    async def _tell(self) -> None:
        async with self.noted:
            self.noted.notify_all()

    async def post(
        self, body: str, step: str = "", path: str = "/api/do", *, upgrade: bool = False
    ) -> tuple[int, Any]:
        """What a program inside gets; status 0 when the connection breaks."""
        reader, writer = await self._stream()
        headers = f"Content-Length: {len(body)}\r\nContent-Type: application/json\r\nConnection: close\r\n"
        if step:
            headers += f"Wardian-Step: {step}\r\n"
        if upgrade:
            headers = "Connection: Upgrade\r\nUpgrade: websocket\r\n"
        writer.write(f"POST {path} HTTP/1.1\r\nHost: bridge.wardian.internal\r\n{headers}\r\n{body}".encode())
        try:
            answer = await asyncio.wait_for(reader.read(), 30)
        except OSError:
            answer = b""
        finally:
            writer.close()
        head, whole, content = answer.partition(b"\r\n\r\n")
        if not whole:
            return 0, None
        length = next(
            int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")
        )
        if len(content) < length:
            return 0, None
        return int(head.split()[1]), json.loads(content)

    async def accounted(self, calls: int) -> None:
        """Once so many answers are on the books."""
        async with self.noted:
            await self.noted.wait_for(lambda: len(self.answers) >= calls)
        await self.database.write(lambda conn: None)

    async def _stream(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A stream of the sandbox's link, as the bridge gets it; waits for a bridge that starts again."""
        while True:
            ours, theirs = socket.socketpair()
            try:
                self.bridge._supervisor.channel.tell(
                    "stream",
                    theirs,
                    holder={
                        name: getattr(holder_of(self.box), name)
                        for name in ("tenant", "agent", "run", "sandbox", "epoch")
                    },
                    host="bridge.wardian.internal",
                    port=80,
                    base=True,
                    tls=False,
                )
                return await asyncio.open_connection(sock=ours)
            except Exception:
                ours.close()
                theirs.close()
                await asyncio.sleep(0.01)


@asynccontextmanager
async def world(tmp_path: Path, point: str, policy: InDoubt) -> AsyncIterator[World]:
    database = await Database.open(tmp_path / "w.db")
    await database.write(lambda conn: keys.add_tenant(conn, "t", name="t", at=1))
    upstream = Upstream()
    server = await asyncio.start_server(upstream.serve, "127.0.0.1", 0)
    upstream.port = server.sockets[0].getsockname()[1]
    command = (sys.executable, "-P", str(Path(__file__).with_name("bridge_peer.py")), point)
    mint = Mint(os.urandom(32), 3600)
    clock = iter(range(1, 1 << 40))
    bridge = await Bridge.open(
        database, tmp_path / "bridge", mint, Keys(), lambda: next(clock), command=command
    )
    try:
        made = World(bridge, upstream, database)

        async def dial(sandbox: Sandbox, host: str, port: int, address: str | None) -> socket.socket:
            sock = socket.socket()
            sock.setblocking(False)
            try:
                await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
            except OSError:
                sock.close()
                raise
            return sock

        async def judge(sandbox: Sandbox, host: str, port: int, method: str, target: str) -> None:
            return None

        bridge.attach(
            dial=dial,
            judge=judge,
            locate=lambda sandbox_id: made.box,
            record=made.record,
        )
        await bridge.vault.create("t", "key", SECRET, {})
        grant = Grant(
            id="",
            tenant="t",
            name="api",
            secret_id="",
            injector=Injector(Injection.BEARER),
            host="api.test",
            created_at=0,
            port=upstream.port,
            tls=False,
            admission=Admission.LINK,
            in_doubt=policy,
        )
        await bridge.grants.add(grant, "key")
        yield made
    finally:
        await bridge.close()
        server.close()
        await database.close()


@pytest.mark.parametrize("policy", [InDoubt.HOLD, InDoubt.KEYED, InDoubt.SAFE])
@pytest.mark.parametrize("point", POINTS)
async def test_a_crash_at_any_point_neither_loses_nor_doubles(
    tmp_path: Path, point: str, policy: InDoubt
) -> None:
    async with world(tmp_path, point, policy) as here:
        ledger, done = here.bridge.ledger, here.upstream.done
        assert await here.post('{"pay": 1}') == (0, None)  # the crash, as the program sees it
        sent = len(done)
        assert sent == (0 if point in NOTHING_SENT else 1)
        in_doubt = await ledger.list("t", in_doubt=True, limit=10)
        assert len(in_doubt) == (0 if point == "after_record" else 1)
        status, told = await here.post('{ "pay": 1 }')  # it tries again, in another spelling
        if point == "after_record":
            assert (status, told, len(done)) == (200, {"done": True}, 1)  # the answer that never arrived
        elif policy is InDoubt.HOLD:
            assert (status, told["error"]["code"], len(done)) == (409, "effect_in_doubt", sent)
            (held,) = await ledger.list("t", in_doubt=True, limit=10)
            assert held.id in told["error"]["hint"]
            await ledger.decide("t", held.id, approve=True)
            assert (await here.post('{"pay": 1}'))[0] == 200
            assert len(done) == sent + 1  # as the human said
        else:
            assert (status, told) == (200, {"done": True})
            assert len(done) == (1 if policy is InDoubt.KEYED else sent + 1)
        assert await ledger.list("t", in_doubt=True, limit=10) == []
        before = len(done)
        assert (await here.post('{"pay": 1}'))[0] == 200  # the same once more, and meant so
        assert len(done) == before + 1


async def test_a_rejected_effect_is_never_sent(tmp_path: Path) -> None:
    async with world(tmp_path, "before_send", InDoubt.HOLD) as here:
        assert (await here.post('{"pay": 1}'))[0] == 0
        (held,) = await here.bridge.ledger.list("t", in_doubt=True, limit=10)
        await here.bridge.ledger.decide("t", held.id, approve=False)
        for _ in range(2):
            status, told = await here.post('{"pay": 1}')
            assert (status, told["error"]["code"]) == (409, "effect_rejected")
        assert here.upstream.done == []
        assert (await here.post('{"pay": 2}'))[0] == 200  # another one is another one


async def test_a_step_that_is_done_again_after_a_restore_sends_nothing(tmp_path: Path) -> None:
    async with world(tmp_path, "never", InDoubt.HOLD) as here:
        here.upstream.answer = b'"' + b"x" * 200_000 + b'"'  # too long for a row
        first = [await here.post('{"mail": 1}', step="7") for _ in range(2)]
        other = await here.post('{"mail": 1}', step="8")
        assert len(here.upstream.done) == 3
        here.box = replace(here.box, epoch=2)  # restored
        here.upstream.answer = b'"changed"'
        assert [await here.post('{"mail": 1}', step="7") for _ in range(2)] == first
        assert await here.post('{"mail": 1}', step="8") == other
        assert len(here.upstream.done) == 3
        assert await here.post('{"mail": 1}', step="7") == (200, "changed")  # a third one is new
        assert await here.post('{"mail": 2}', step="7") == (200, "changed")
        assert len(here.upstream.done) == 5
        assert [each["reason"] for each in here.events if each.get("effect")].count("replayed") == 3


async def test_the_next_machine_of_a_run_is_given_what_the_one_before_it_asked_for(tmp_path: Path) -> None:
    """Also what was answered before its machine died, and what is being answered while it does."""
    async with world(tmp_path, "never", InDoubt.HOLD) as here:
        here.box = replace(here.box, spec=SandboxSpec(run="r1"))
        first = [await here.post('{"mail": 1}', step="7") for _ in range(2)]
        here.upstream.answering.clear()
        asking = asyncio.create_task(here.post('{"slow": 1}', step="7"))
        await here.upstream.asked.wait()
        here.box = replace(here.box, id="s2")
        again = asyncio.create_task(here.post('{"slow": 1}', step="7"))
        assert [await here.post('{"mail": 1}', step="7") for _ in range(2)] == first
        here.upstream.answer = b'"changed"'
        here.upstream.answering.set()
        assert await again == await asking
        assert len(here.upstream.done) == 3
        assert await here.post('{"mail": 1}', step="7") == (200, "changed")  # a third one is new
        assert len(here.upstream.done) == 4


async def test_a_speculative_branch_does_nothing_outside_until_it_is_promoted(tmp_path: Path) -> None:
    async with world(tmp_path, "never", InDoubt.HOLD) as here:
        ledger, done = here.bridge.ledger, here.upstream.done
        (grant,) = here.bridge.grants.of("t")
        for policy in (InDoubt.OFF, InDoubt.SAFE, InDoubt.KEYED):
            await here.bridge.grants.add(replace(grant, name=policy.value, in_doubt=policy), "key")
        promoted, here.box = here.box, replace(here.box, spec=SandboxSpec(speculative=True))
        for body, path in (('{"pay": 1}', "/api/do"), ('{"pay": 1}', "/api/do"), ('{"pay": 2}', "/keyed/do")):
            status, told = await here.post(body, path=path)
            assert (status, told["error"]["code"]) == (409, "effect_speculative")
        assert "wardian sandbox promote s1" in told["error"]["hint"]
        # What no ledger keeps cannot be held, and what may happen twice need not be.
        for path in ("/off/do", "/api/do"):
            status, told = await here.post("{}", path=path, upgrade=path == "/api/do")
            assert (status, told["error"]["code"]) == (409, "effect_speculative")
        assert (done, await ledger.list("t", in_doubt=True, limit=10)) == ([], [])
        assert (await here.post('{"ask": 1}', path="/safe/do"))[0] == 200
        assert (len(done), await ledger.speculated("t", "s1")) == (1, 2)
        # A human may let one through alone, or stop it for good.
        first, second = reversed(
            [e for e in await ledger.list("t", in_doubt=False, limit=9) if not e.response]
        )
        await ledger.decide("t", first.id, approve=True)
        assert (await here.post('{"pay": 1}'))[0] == 200
        await ledger.decide("t", second.id, approve=False)
        assert (await here.post('{"pay": 3}'))[0] == 409
        here.box = promoted
        assert (await here.post('{"pay": 2}', path="/keyed/do"))[1]["error"]["code"] == "effect_rejected"
        assert (await here.post('{"pay": 3}'))[0] == 200
        assert [json.loads(each) for each in done] == [{"ask": 1}, {"pay": 1}, {"pay": 3}]
        assert await ledger.speculated("t", "s1") == 0


async def test_what_nothing_will_ask_for_goes_and_what_may_be_replayed_stays(tmp_path: Path) -> None:
    async with world(tmp_path, "never", InDoubt.HOLD) as here:
        ledger, sweeper = here.bridge.ledger, here.bridge.sweeper
        await here.database.write(lambda conn: nodes.take(conn, "n", holder="h", at=1))
        await here.database.write(lambda conn: sandboxes.add(conn, BOX, node_id="n"))
        here.upstream.answer = b'"' + b"x" * 200_000 + b'"'  # too long for a row
        blobs = tmp_path / "bridge" / "blobs"
        first = await here.post('{"mail": 1}', step="7")
        for n in range(3):
            await here.post(json.dumps({"pay": n}))
        await here.accounted(4)
        assert len(list(blobs.iterdir())) == 4
        assert await sweeper.sweep() == 0  # young, and few
        (kept,) = blobs.iterdir()  # of the others there is nothing to be told again
        listed = await ledger.list("t", in_doubt=False, limit=10)
        assert [each.step for each in listed] == ["", "", "", "7"]
        many = Sweeper(here.database, Retention(most=2), here.bridge._forget, lambda: 1)
        assert await many.sweep() == 2  # the oldest, but not the one that may be replayed
        assert [each.step for each in await ledger.list("t", in_doubt=False, limit=10)] == ["", "7"]
        old = Sweeper(here.database, Retention(days=1), here.bridge._forget, lambda: 2 * DAY_US)
        assert await old.sweep() == 1
        assert [each.id for each in await ledger.list("t", in_doubt=False, limit=10)] == [kept.name]
        here.box = replace(here.box, epoch=2)  # restored, long after
        assert await here.post('{"mail": 1}', step="7") == first
        await here.database.write(lambda conn: sandboxes.change(conn, "s1", {"state": "ended"}))
        assert await old.sweep() == 1
        assert list(blobs.iterdir()) == []
        assert await ledger.list("t", in_doubt=False, limit=10) == []


async def test_a_sandbox_cannot_fill_the_ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(effects, "OPEN_MAX", 2)
    async with world(tmp_path, "never", InDoubt.HOLD) as here:
        for n in range(5):  # what nobody will ask for again does not count
            assert (await here.post(json.dumps(n)))[0] == 200
            await here.accounted(n + 1)
        assert [(await here.post("{}", step=str(n)))[0] for n in range(3)] == [200, 200, 429]
        assert len(here.upstream.done) == 7


async def test_an_upstream_that_breaks_off_leaves_doubt_and_one_that_is_not_there_none(
    tmp_path: Path,
) -> None:
    async with world(tmp_path, "never", InDoubt.HOLD) as here:

        async def slam(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.transport.abort()

        here.upstream.serve = slam  # type: ignore[method-assign]
        slammer = await asyncio.start_server(slam, "127.0.0.1", 0)
        port = slammer.sockets[0].getsockname()[1]
        (grant,) = here.bridge.grants.of("t")
        await here.bridge.grants.add(replace(grant, name="slam", port=port), "key")
        status, told = await here.post("{}", path="/slam/do")
        assert (status, told["error"]["code"]) == (502, "upstream_broke_off")
        slammer.close()
        await slammer.wait_closed()
        (one,) = await here.bridge.ledger.list("t", in_doubt=True, limit=10)
        assert one.state is EffectState.INTENDED
        await here.bridge.grants.add(replace(grant, name="gone", port=port), "key")
        status, told = await here.post('{"other": 1}', path="/gone/do")
        assert (status, told["error"]["code"]) == (502, "upstream_unreachable")
        assert len(await here.bridge.ledger.list("t", in_doubt=False, limit=10)) == 1


async def test_budgets_answer_402_and_say_what_to_do(tmp_path: Path) -> None:
    async with world(tmp_path, "never", InDoubt.OFF) as here:
        budgets = here.bridge.budgets
        here.upstream.kind = "application/json"
        usage = {"prompt_tokens": 1000, "completion_tokens": 500}
        here.upstream.answer = json.dumps({"model": "big-1-2026", "usage": usage}).encode()
        await budgets.set_price(Price("t", "big-1", 3_000_000, 15_000_000))
        unbounded = 1 << 40
        for scope, subject in ((Scope.RUN, "s1"), (Scope.TEMPLATE, "base"), (Scope.TENANT, "t")):
            for unit in Unit:
                await budgets.set(Budget("t", scope, subject, unit, unbounded))
        assert (await here.post('{"a": 1}'))[0] == 200
        await here.accounted(1)
        used = {(each.scope, each.unit): each.used for each in await budgets.list("t")}
        assert used[Scope.RUN, Unit.CALLS] == 1
        assert used[Scope.TEMPLATE, Unit.TOKENS] == 1500
        assert used[Scope.TENANT, Unit.MICRO_USD] == 1000 * 3 + 500 * 15
        assert used[Scope.RUN, Unit.BYTES] == len('{"a": 1}') + len(here.upstream.answer)
        for unit in Unit:
            await budgets.set(Budget("t", Scope.RUN, "s1", unit, used[Scope.RUN, unit]))
            status, told = await here.post('{"a": 1}')
            assert (status, told["error"]["code"]) == (402, "budget_exceeded")
            assert f"wardian budget set --run s1 --{unit.replace('_', '-')}" in told["error"]["hint"]
            await budgets.set(Budget("t", Scope.RUN, "s1", unit, unbounded))
        assert len(here.upstream.done) == 1
        assert (await here.post('{"a": 1}'))[0] == 200
