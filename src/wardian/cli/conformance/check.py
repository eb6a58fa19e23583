"""Carries the attacks out: a sandbox on a server, our far sides, one attack after another."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

from wardian.cli import remote
from wardian.cli.conformance.attacks import CASES, Case, Outcome, judge
from wardian.cli.conformance.farside import ALLOWED, DENIED, NETWORK, REBIND, RULED, FarSide, far_side
from wardian.cli.envd import Envd
from wardian.cli.processes import capture
from wardian.cli.remote import Address, Remote
from wardian.model.egress import ALL_TRAFFIC
from wardian.model.errors import Unavailable, WardianError

LIFETIME_S = 900
SETTLE_S = 0.2
"""How long something that is on its way to a far side may take."""
SCRIPT = "/tmp/wardian-egress-check.py"
Tell = Callable[[Outcome], None]


async def check(
    server: Address, tell: Tell, *, isolation: str | None = None, cases: Sequence[Case] = CASES
) -> Sequence[Outcome]:
    """The outcome of every case on this server, in a sandbox of its own that is gone afterwards."""
    async with far_side() as far, remote.connect(server) as there:
        sandbox, shown = await _sandbox(there, far, isolation)
        try:
            script = files("wardian.cli.conformance").joinpath("inside.py").read_bytes()
            await Envd(there, sandbox, "root").upload(SCRIPT, _once(script))
            outcomes = []
            for case in cases:
                outcomes.append(await _try(there, sandbox, far, case, shown=shown))
                tell(outcomes[-1])
            return outcomes
        finally:
            await there.call("DELETE", f"/sandboxes/{sandbox['sandboxID']}")


async def _sandbox(there: Remote, far: FarSide, isolation: str | None) -> tuple[dict[str, Any], bool]:
    """A sandbox that may reach one host; False when this server lets it reach none of our far sides."""
    network: dict[str, Any] = {
        "allowOut": [ALLOWED, REBIND],
        "denyOut": [ALL_TRAFFIC],
        "dnsServers": [far.names],
        "egressRules": [f"allow {RULED}:80 GET /open/*"],
    }
    body: dict[str, Any] = {"templateID": "base", "timeout": LIFETIME_S, "network": network}
    if isolation is not None:
        body["isolation"] = isolation
    try:
        return (await there.call("POST", "/v2/sandboxes", body=body)).json(), True
    except WardianError as error:
        if error.code != "dns_server_denied":
            raise
    del network["dnsServers"]
    return (await there.call("POST", "/v2/sandboxes", body=body)).json(), False


async def _once(data: bytes) -> AsyncIterator[bytes]:
    yield data


async def _try(there: Remote, sandbox: dict[str, Any], far: FarSide, case: Case, *, shown: bool) -> Outcome:
    far.heard.clear()
    far.asked.clear()
    facts = {
        "home": far.home,
        "elsewhere": far.elsewhere,
        "host": far.host,
        "host_port": far.host_port,
        "allowed": ALLOWED,
        "denied": DENIED,
        "ruled": RULED,
        "rebind": REBIND,
    }
    envd = Envd(there, sandbox, case.user)
    _, kept = await capture(envd, ["python3", SCRIPT, case.name, json.dumps(facts)], user=case.user)
    await asyncio.sleep(SETTLE_S)
    leaked = [name for name in far.asked if name not in (ALLOWED, RULED, REBIND)]
    seen = kept.text("stdout") + kept.text("stderr")
    return judge(case, seen, list(far.heard), leaked, home=far.home, shown=shown)


@asynccontextmanager
async def own_server(data: Path | None = None) -> AsyncIterator[Address]:
    """A server for this alone, which may reach our far sides."""
    with tempfile.TemporaryDirectory(prefix="wardian-check-") as scratch:
        directory = data or Path(scratch)
        words = [sys.executable, "-m", "wardian.cli.main", "serve", "--json", "--port", "0"]
        with (directory / "server.log").open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                *words,
                "--data",
                str(directory),
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                env=os.environ | {"WARDIAN_ALLOWED_NETWORKS": NETWORK},
            )
        assert process.stdout is not None
        try:
            if not (greeting := await process.stdout.readline()):
                said = (directory / "server.log").read_text(errors="replace").strip()[-2000:]
                raise Unavailable(
                    f"the server for the check did not start: {said}", code="check_server_failed"
                )
            told = json.loads(greeting)
            yield Address(told["url"], told["key"])
        finally:
            if process.returncode is None:
                process.send_signal(signal.SIGTERM)
            await process.wait()
