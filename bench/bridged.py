"""The bridge without sandboxes: its process, and the server's half of it, which hands it connections.

``python -m bench.bridged DIRECTORY CERTIFICATE PORT`` grants the upstream on ``PORT`` and listens twice on
loopback: as the bridge's own name, and in the place of the upstream. It prints both ports.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
from pathlib import Path

import uvloop

from wardian.bridge.passes import Mint
from wardian.bridge.service import Bridge, holder_of
from wardian.bridge.supervisor import Keys
from wardian.model.grant import BRIDGE_HOST, Admission, Grant, Injection, Injector
from wardian.model.resources import Resources
from wardian.model.sandbox import Sandbox, SandboxSpec, State
from wardian.store import keys
from wardian.store.clock import now_us
from wardian.store.database import Database

HOST, SECRET = "api.test", "sk-bench-secret"
BOX = Sandbox(
    id="bench",
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


async def main(directory: Path, trust: str, port: int) -> None:
    database = await Database.open(directory / "w.db")
    await database.write(lambda conn: keys.add_tenant(conn, "t", name="t", at=1))
    bridge = await Bridge.open(
        database,
        directory / "bridge",
        Mint(os.urandom(32), 3600),
        Keys(),
        now_us,
        trust=trust,
    )

    async def dial(sandbox: Sandbox, host: str, port: int, address: str | None) -> socket.socket:
        sock = socket.socket()
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
        return sock

    async def judge(sandbox: Sandbox, host: str, port: int, method: str, target: str) -> None:
        return None

    bridge.attach(dial=dial, judge=judge, locate=lambda _: BOX, record=lambda *_: None)
    await bridge.vault.create("t", "key", SECRET, {})
    grant = Grant(
        id="",
        tenant="t",
        name="api",
        secret_id="",
        injector=Injector(Injection.BEARER),
        host=HOST,
        created_at=0,
        port=port,
        admission=Admission.LINK,
    )
    await bridge.grants.add(grant, "key")
    listening = [_listen(), _listen()]
    sys.stdout.write(json.dumps([each.getsockname()[1] for each in listening]) + "\n")
    sys.stdout.flush()
    await asyncio.gather(
        _hand_over(bridge, listening[0], 80, base=True), _hand_over(bridge, listening[1], port)
    )


def _listen() -> socket.socket:
    sock = socket.create_server(("127.0.0.1", 0), backlog=128)
    sock.setblocking(False)
    return sock


async def _hand_over(bridge: Bridge, listening: socket.socket, port: int, *, base: bool = False) -> None:
    holder = holder_of(BOX)
    facts = {name: getattr(holder, name) for name in type(holder).__dataclass_fields__}
    while True:
        sock, _ = await asyncio.get_running_loop().sock_accept(listening)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        bridge._supervisor.channel.tell(
            "stream",
            sock,
            holder=facts,
            host=BRIDGE_HOST if base else HOST,
            port=port,
            base=base,
            tls=not base,
        )


if __name__ == "__main__":
    uvloop.run(main(Path(sys.argv[1]), Path(sys.argv[2]).read_text(), int(sys.argv[3])))
