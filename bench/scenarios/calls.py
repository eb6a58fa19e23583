"""How many calls of the SDK one core answers: the server and its machines on one, the clients on another.

What runs commands by hand, client and all, is on the first.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace

from e2b import Sandbox

from bench.clients import BareClient, Endpoint
from bench.cores import confined
from bench.lab import Lab
from bench.measure import Contender, Kind, Section, take_turns
from bench.peers import Oci
from bench.server import Pools, Server

AT_ONCE = 4
SECONDS = 2.0
SDK, BARE = "Wardian, SDK", "Wardian, bare HTTP"
FLOOR = "SDK, server does nothing"

Call = Callable[[], object]


def run(lab: Lab) -> Sequence[Section]:
    """Nothing on a machine with one core."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        return ()
    with ExitStack() as stack:
        server = Server(lab.scratch / "server-one-core", Pools())
        stack.callback(server.close)
        plain = lab.plain()
        for pid in (server.pid, lab.plain_pid):
            stack.enter_context(confined(pid, cores[:1]))
        stack.enter_context(confined(os.getpid(), cores[1:2]))
        sandbox = server.endpoint.create()
        stack.callback(sandbox.kill)
        empty = plain.create()
        peers = lab.peers()
        by_hand = {
            f"{name} exec": stack.enter_context(_executed_on(cores[0], runtime))
            for name, runtime in (("runsc", peers.runsc), ("crun", peers.crun))
        }
        ran = _ran(server.endpoint, sandbox, empty)
        pool = stack.enter_context(ThreadPoolExecutor(AT_ONCE))
        return [
            _section(lab, pool, "get_info", "get_info", _described(server.endpoint, sandbox, empty)),
            _section(lab, pool, "exists", "files.exists", _looked(server.endpoint, sandbox, empty)),
            _section(lab, pool, "true", 'commands.run("true")', ran | by_hand),
        ]


Field = dict[str, Callable[[], Call]]
"""By contender: makes one client's call."""


def _described(endpoint: Endpoint, sandbox: Sandbox, empty: Sandbox) -> Field:
    path = f"/sandboxes/{sandbox.sandbox_id}"
    return {
        SDK: lambda: sandbox.get_info,
        BARE: lambda: _bare(endpoint, lambda bare: bare.get(path)),
        FLOOR: lambda: empty.get_info,
    }


def _looked(endpoint: Endpoint, sandbox: Sandbox, empty: Sandbox) -> Field:
    described = _as_described(sandbox)
    return {
        SDK: lambda: lambda: sandbox.files.exists("/etc/hosts"),
        BARE: lambda: _bare(endpoint, lambda bare: bare.stat(described, "/etc/hosts")),
        FLOOR: lambda: lambda: empty.files.exists("/etc/hosts"),
    }


def _ran(endpoint: Endpoint, sandbox: Sandbox, empty: Sandbox) -> Field:
    described = _as_described(sandbox)
    return {
        SDK: lambda: lambda: sandbox.commands.run("true"),
        BARE: lambda: _bare(endpoint, lambda bare: bare.run_true(described)),
        FLOOR: lambda: lambda: empty.commands.run("true"),
    }


@contextmanager
def _executed_on(core: int, runtime: Oci) -> Iterator[Callable[[], Call]]:
    """The same command in a container on that core, by commands of the runtime there."""
    confined = replace(runtime, command=("taskset", "--cpu-list", str(core), *runtime.command))
    with confined.idle() as name:
        yield lambda: lambda: confined.exec(name)


def _bare(endpoint: Endpoint, act: Callable[[BareClient], object]) -> Call:
    client = BareClient(endpoint)
    return lambda: act(client)


def _as_described(sandbox: Sandbox) -> dict[str, str]:
    return {"sandboxID": sandbox.sandbox_id, "envdAccessToken": str(sandbox._envd_access_token)}


def _section(lab: Lab, pool: ThreadPoolExecutor, key: str, shown: str, field: Field) -> Section:
    rounds = lab.rounds(quick=2, full=8)
    kinds = {SDK: Kind.WARDIAN, BARE: Kind.WARDIAN, FLOOR: Kind.FLOOR}
    contenders = [
        Contender(name, lambda make=make: _rate(pool, make), kinds.get(name, Kind.PEER))  # type: ignore[misc]
        for name, make in field.items()
    ]
    with lab.progress(f"calls: {key}", rounds + 1) as tick:
        rows = take_turns(contenders, rounds=rounds, tick=tick)
    notes = [f"{AT_ONCE} clients in one Python process, on another core: near the floor, they are the limit."]
    if field.keys() - kinds.keys():
        notes.append(f"By hand: {AT_ONCE} commands of the runtime at a time, on the server's core.")
    return Section(
        f"calls-{key}", f"Calls of {shown} on one core", "1/s", SDK, rows, notes=tuple(notes), higher=True
    )


def _rate(pool: ThreadPoolExecutor, make: Callable[[], Call]) -> float:
    """Calls a second by all clients together."""
    calls = [make() for _ in range(AT_ONCE)]
    started = time.perf_counter()
    counts = pool.map(lambda call: _until(started + SECONDS, call), calls)
    return sum(counts) / (time.perf_counter() - started)


def _until(end: float, call: Call) -> int:
    count = 0
    while time.perf_counter() < end:
        call()
        count += 1
    return count
