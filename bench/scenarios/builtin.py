"""From nothing to the first result of code, and to the first picture of a desktop."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from e2b_code_interpreter import Sandbox as Interpreter
from e2b_desktop import Sandbox as Desktop

from bench.clients import Endpoint
from bench.lab import REPOSITORY, Lab
from bench.measure import Contender, Goal, Kind, Section, take_turns
from bench.server import Pools, Server

DATA: Path = REPOSITORY / "build/builtin"
"""Where `make builtin` built the templates."""

SUBJECT = "Wardian, hot pool"


def run(lab: Lab) -> Sequence[Section]:
    """Two tables; none where the templates are not built."""
    if not DATA.exists():
        return ()
    server = Server(DATA, Pools(hot=2))
    try:
        code = _section(
            lab, server, "run_code", "Create to run_code", _first_result, lab.rounds(quick=8, full=60)
        )
        shot = _section(
            lab, server, "screenshot", "Create to screenshot", _first_picture, lab.rounds(quick=4, full=20)
        )
    finally:
        server.close()
    row = code.row(SUBJECT)
    if row is not None:
        goals = (
            Goal("create to run_code, median", 200, row.median, "ms"),
            Goal("create to run_code, p99", 200, row.p99, "ms"),
        )
        code = replace(code, goals=goals)
    return code, shot


def _section(
    lab: Lab, server: Server, key: str, title: str, once: Callable[[Endpoint], float], rounds: int
) -> Section:
    def settled() -> float:
        server.settle()
        return once(server.endpoint)

    with lab.progress(title.lower(), rounds + 1) as tick:
        rows = take_turns([Contender(SUBJECT, settled, Kind.WARDIAN)], rounds=rounds, tick=tick)
    note = "Through the official SDK, everything that it does included. Pools refill between samples."
    return Section(key, title, "ms", SUBJECT, rows, notes=(note,))


def _first_result(endpoint: Endpoint) -> float:
    return _timed(Interpreter, endpoint, lambda sandbox: sandbox.run_code("1+1"))


def _first_picture(endpoint: Endpoint) -> float:
    return _timed(Desktop, endpoint, lambda sandbox: sandbox.screenshot())


def _timed(kind: Any, endpoint: Endpoint, act: Callable[[Any], object]) -> float:
    there = {"api_url": endpoint.url, "sandbox_url": endpoint.url, "api_key": endpoint.key}
    began = time.perf_counter()
    sandbox = kind.create(timeout=120, **there)
    try:
        act(sandbox)
        return (time.perf_counter() - began) * 1000
    finally:
        sandbox.kill()
