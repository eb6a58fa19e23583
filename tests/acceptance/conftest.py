"""One server, as a user starts it, and the official SDK pointed at it.

The server is a process of its own on a free port with an empty data directory. Tests share it, and mostly one
sandbox, in which each test has a directory (``room``) of its own.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import uuid
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from inspect import isawaitable
from pathlib import Path
from typing import Any

import httpx
import pytest
from e2b import AsyncSandbox, Sandbox
from tests.acceptance.running import House

START_S = 90
STOP_S = 60
LIFETIME_S = 3600


@dataclass(frozen=True, slots=True)
class Server:
    """A running ``wardian serve``."""

    url: str
    key: str
    data: Path
    process: subprocess.Popen[str]
    facts: Mapping[str, Any]
    """The whole greeting."""


WARDIAN = (str(Path(sys.executable).with_name("wardian")),)


def serve(data: Path, *options: str, wardian: Sequence[str] = WARDIAN) -> Server:
    """Start a server on a free port and wait for its greeting."""
    with (data / "server.log").open("a") as log:
        process = subprocess.Popen(
            [*wardian, "serve", "--json", "--port", "0", "--data", data, *options],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
    assert process.stdout is not None
    greeting = process.stdout.readline()
    if not greeting:
        process.stdout.close()
        process.wait(STOP_S)
        pytest.fail("the server did not start:\n" + (data / "server.log").read_text())
    facts = json.loads(greeting)
    return Server(facts["url"], facts["key"], data, process, facts)


def stop(server: Server) -> None:
    """Stop it in order; what its stop leaves behind is a defect that other tests look for."""
    server.process.send_signal(signal.SIGTERM)
    try:
        server.process.wait(STOP_S)
    finally:
        server.process.kill()
        server.process.wait()
        if server.process.stdout is not None:
            server.process.stdout.close()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The server of this session; the SDK finds it in the environment."""
    started = serve(tmp_path_factory.mktemp("acceptance"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("E2B_API_URL", started.url)
        patch.setenv("E2B_SANDBOX_URL", started.url)
        patch.setenv("E2B_API_KEY", started.key)
        try:
            yield started
        finally:
            for sandbox_id in _living():
                Sandbox.kill(sandbox_id)
            stop(started)


def _living() -> list[str]:
    pages = Sandbox.list()
    found: list[str] = []
    while pages.has_next:
        found += [item.sandbox_id for item in pages.next_items()]
    return found


@pytest.fixture(scope="module")
def house(server: Server) -> Iterator[House]:
    """The session's server, as tests of agents and runs talk to it."""
    house = House(server)
    yield house
    house.http.close()


@pytest.fixture(scope="session")
def shared(server: Server) -> Sandbox:
    """The sandbox that tests share. It ends with the server."""
    return Sandbox.create(timeout=LIFETIME_S, envs={"SANDBOX_WIDE": "everywhere"})


@pytest.fixture
def envd(server: Server, shared: Sandbox) -> Iterator[httpx.Client]:
    """Plain HTTP to the shared sandbox's agent, for what the SDK does not let a test say or see."""
    headers = {
        "E2b-Sandbox-Id": shared.sandbox_id,
        "E2b-Sandbox-Port": "49983",
        "X-Access-Token": shared._envd_access_token or "",
    }
    with httpx.Client(base_url=server.url, headers=headers) as client:
        yield client


@pytest.fixture(params=["sync", "async"])
async def sandbox(request: pytest.FixtureRequest, shared: Sandbox) -> Any:
    """The shared sandbox through each of the SDK's two faces. Await its answers with :func:`done`."""
    if request.param == "sync":
        return shared
    return await AsyncSandbox.connect(shared.sandbox_id, timeout=LIFETIME_S)


@pytest.fixture
def room(shared: Sandbox) -> str:
    """A directory of its own for one test, absolute."""
    path = f"/home/user/room-{uuid.uuid4().hex[:12]}"
    shared.files.make_dir(path)
    return path


@pytest.fixture(scope="session")
def done() -> Callable[[Any], Awaitable[Any]]:
    """Awaits what is awaitable, so that one test serves both faces of the SDK."""

    async def settle(answer: Any) -> Any:
        return await answer if isawaitable(answer) else answer

    return settle


@pytest.fixture
def own_sandbox(server: Server) -> Iterator[Callable[..., Sandbox]]:
    """Makes sandboxes that the test may pause and kill; the rest are killed after it."""
    made: list[Sandbox] = []

    def create(**options: Any) -> Sandbox:
        made.append(Sandbox.create(**{"timeout": 120, **options}))
        return made[-1]

    yield create
    for each in made:
        Sandbox.kill(each.sandbox_id)
