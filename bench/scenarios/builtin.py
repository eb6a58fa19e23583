"""From nothing to the first result of code, and to the first picture of a desktop."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
from e2b_code_interpreter import Sandbox as Interpreter
from e2b_desktop import Sandbox as Desktop

from bench.clients import Endpoint
from bench.lab import REPOSITORY, Lab
from bench.measure import Contender, Goal, Kind, Section, take_turns
from bench.peers import by_hand
from bench.server import Pools, Server

DATA: Path = REPOSITORY / "build/builtin"
"""Where `make builtin` built the templates."""

SUBJECT = "Wardian, hot pool"


IPYTHON = ("/usr/bin/python3", "-m", "IPython", "-c", "1+1")
DRAWN = """
desktop-session >/dev/null 2>&1 &
export DISPLAY=:0
until pgrep -x xfdesktop >/dev/null && xdpyinfo >/dev/null 2>&1; do sleep 0.1; done
scrot --overwrite /tmp/shot.png
"""
"""From nothing to a picture of what a session has drawn by then, which may be only a part of it."""


def run(lab: Lab) -> Sequence[Section]:
    """Two tables; none where the templates are not built."""
    if not DATA.exists():
        return ()
    server = Server(DATA, Pools(hot=2))
    try:
        code = _section(lab, server, CODE, lab.rounds(quick=8, full=40))
        shot = _section(lab, server, SHOT, lab.rounds(quick=4, full=20))
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


@dataclass(frozen=True, slots=True)
class Act:
    """What is done with a new sandbox of a template, and the same by hand in a new gVisor container."""

    key: str
    title: str
    template: str
    once: Callable[[Endpoint], float]
    again: Callable[[Endpoint], float]
    by_hand: Sequence[str]
    name_by_hand: str
    every: int


def _section(lab: Lab, server: Server, act: Act, rounds: int) -> Section:
    def settled(once: Callable[[Endpoint], float]) -> float:
        server.settle()
        return once(server.endpoint)

    hand = by_hand(lab.scratch, f"hand-{act.key}", _image(server.endpoint, act.template), act.by_hand)
    contenders = [
        Contender(SUBJECT, lambda: settled(act.once), Kind.WARDIAN),
        Contender(f"{SUBJECT}, a second time", lambda: settled(act.again), Kind.WARDIAN),
        Contender(act.name_by_hand, hand.run, every=act.every),
    ]
    with lab.progress(act.title.lower(), rounds + 1) as tick:
        rows = take_turns(contenders, rounds=rounds, tick=tick)
    note = "Through the official SDK, everything that it does included. Pools refill between samples."
    return Section(act.key, act.title, "ms", SUBJECT, rows, notes=(note,))


def _image(endpoint: Endpoint, template: str) -> Path:
    """The root image of a template."""
    answer = httpx.get(f"{endpoint.url}/wardian/builds/{template}", headers={"X-API-KEY": endpoint.key})
    return DATA / "roots" / f"{answer.json()['image'].removeprefix('sha256:')}.erofs"


def _run_code(sandbox: Any) -> object:
    return sandbox.run_code("1+1")


def _screenshot(sandbox: Any) -> object:
    return sandbox.screenshot()


def _from_create(kind: Any, act: Callable[[Any], object]) -> Callable[[Endpoint], float]:
    """From the request for a sandbox to what ``act`` gives in it (ms)."""

    def once(endpoint: Endpoint) -> float:
        began = time.perf_counter()
        with _created(kind, endpoint) as sandbox:
            act(sandbox)
            return (time.perf_counter() - began) * 1000

    return once


def _the_second_time(kind: Any, act: Callable[[Any], object]) -> Callable[[Endpoint], float]:
    """The act alone, in a sandbox that has done it before (ms)."""

    def once(endpoint: Endpoint) -> float:
        with _created(kind, endpoint) as sandbox:
            act(sandbox)
            began = time.perf_counter()
            act(sandbox)
            return (time.perf_counter() - began) * 1000

    return once


@contextmanager
def _created(kind: Any, endpoint: Endpoint) -> Iterator[Any]:
    there = {"api_url": endpoint.url, "sandbox_url": endpoint.url, "api_key": endpoint.key}
    sandbox = kind.create(timeout=120, **there)
    try:
        yield sandbox
    finally:
        sandbox.kill()


CODE = Act(
    key="run_code",
    title="Create to run_code",
    template="code-interpreter-v1",
    once=_from_create(Interpreter, _run_code),
    again=_the_second_time(Interpreter, _run_code),
    by_hand=IPYTHON,
    name_by_hand="runsc run ipython -c 1+1",
    every=6,
)
SHOT = Act(
    key="screenshot",
    title="Create to screenshot",
    template="desktop",
    once=_from_create(Desktop, _screenshot),
    again=_the_second_time(Desktop, _screenshot),
    by_hand=("/bin/bash", "-l", "-c", DRAWN),
    name_by_hand="runsc run, session and scrot",
    every=5,
)
