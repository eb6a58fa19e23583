"""What TLS and HTTP/2 cost: the same calls of the SDK in the clear, over HTTPS with HTTP/1.1 and HTTP/2.

The three speak to one server and one sandbox; the two over HTTPS come through its proxy, as without DNS.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

from e2b import Sandbox

from bench.clients import elapsed, run_true
from bench.lab import Lab, Pools
from bench.measure import Contender, Kind, Section, take_turns
from bench.server import Server

MEGABYTES = 64
PATH = "/home/user/big"
SUBJECT = "HTTPS, HTTP/2"


def run(lab: Lab) -> Sequence[Section]:
    server = lab.named(Pools(hot=2))
    os.environ["SSL_CERT_FILE"] = server.facts["ca"]  # nobody else here speaks TLS
    sandbox = server.endpoint.create()
    try:
        ways = {
            SUBJECT: _by_name(server, sandbox, "2"),
            "HTTPS, HTTP/1.1": _by_name(server, sandbox, "1.1"),
            "plain HTTP": sandbox,
        }
        content = os.urandom(MEGABYTES << 20)
        return [
            _section(lab, ways, "calls", "A small call (files.exists)", "ms", _ask, rounds=(20, 400)),
            _section(lab, ways, "exec by name", "Exec of true", "ms", run_true, rounds=(10, 100)),
            _section(
                lab,
                ways,
                "up",
                f"Upload of {MEGABYTES} MB",
                "MB/s",
                partial(_upload, content),
                rounds=(2, 10),
            ),
            _section(lab, ways, "down", f"Download of {MEGABYTES} MB", "MB/s", _download, rounds=(2, 10)),
        ]
    finally:
        sandbox.kill()


def _by_name(server: Server, sandbox: Sandbox, version: Literal["1.1", "2"]) -> Sandbox:
    facts = server.facts
    options: dict[str, Any] = {"api_key": facts["key"], "domain": facts["domain"], "proxy": facts["proxy"]}
    return Sandbox.connect(sandbox.sandbox_id, http_version=version, **options)


def _section(
    lab: Lab,
    ways: dict[str, Sandbox],
    name: str,
    title: str,
    unit: str,
    measure: Callable[[Sandbox], float],
    *,
    rounds: tuple[int, int],
) -> Section:
    quick, full = rounds
    field = [Contender(way, partial(measure, box), Kind.WARDIAN) for way, box in ways.items()]
    count = lab.rounds(quick=quick, full=full)
    with lab.progress(name, count) as tick:
        rows = take_turns(field, rounds=count, tick=tick)
    return Section(name, f"{title}, in the clear and by name", unit, SUBJECT, rows, higher=unit == "MB/s")


def _ask(box: Sandbox) -> float:
    started = time.perf_counter()
    box.files.exists("/home")
    return elapsed(started)


def _upload(content: bytes, box: Sandbox) -> float:
    started = time.perf_counter()
    box.files.write(PATH, content, use_octet_stream=True)
    return MEGABYTES / (time.perf_counter() - started)


def _download(box: Sandbox) -> float:
    started = time.perf_counter()
    box.files.read(PATH, format="bytes")
    return MEGABYTES / (time.perf_counter() - started)
