"""The releases of the official clients that this server is for, each driven through all it can do.

The default suite drives the ones marked short; ``make test-sdks`` drives all and writes ``docs/sdks.md``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from importlib.metadata import version

import pytest
from tests.acceptance.conftest import Server
from tests.acceptance.sdks.matrix import table
from tests.acceptance.sdks.releases import (
    RELEASES,
    REPOSITORY,
    SDKS,
    Release,
    environment,
    of,
    run_beside,
    run_program,
)


@pytest.fixture(scope="module")
def outcomes() -> Iterator[dict[Release, dict[str, str]]]:
    """What every release could do; written down when all of them were driven."""
    found: dict[Release, dict[str, str]] = {}
    yield found
    if found.keys() == set(RELEASES):
        (REPOSITORY / "docs" / "sdks.md").write_text(table(found))


def test_the_newest_sdk_is_the_one_we_depend_on() -> None:
    assert version("e2b") == next(release.version for release in RELEASES if release.package == "e2b")


@pytest.mark.parametrize("release", of("python"))
def test_a_python_sdk(server: Server, release: Release, outcomes: dict[Release, dict[str, str]]) -> None:
    python = release.installed() / "bin/python"
    done = _drive(server, str(python), str(SDKS / "tour.py"), release.package)
    outcomes[release] = done
    assert {step for step, outcome in done.items() if outcome != "ok"} == release.lacks
    if "snapshot" not in release.lacks:
        _drive(server, str(python), str(SDKS / "tour_async.py"), release.package)


@pytest.mark.parametrize("release", of("javascript"))
def test_a_javascript_sdk(server: Server, release: Release, outcomes: dict[Release, dict[str, str]]) -> None:
    outcomes[release] = done = _outcome(run_beside(release, SDKS / "tour.mjs", environment(server)))
    assert {step for step, outcome in done.items() if outcome != "ok"} == release.lacks


@pytest.mark.parametrize("release", of("command line"))
def test_the_command_line(server: Server, release: Release, outcomes: dict[Release, dict[str, str]]) -> None:
    program = str(release.installed() / "node_modules/.bin/e2b")

    def e2b(*words: str) -> str:
        return _run(server, program, *words)

    said = e2b("sandbox", "create", "--detach", "base")  # more words in one release, fewer in the other
    sandbox_id = next(word for word in said.split() if re.fullmatch("i[a-z0-9]{19}", word))
    listed = json.loads(e2b("sandbox", "list", "--format", "json"))
    assert sandbox_id in [item["sandboxId"] for item in listed]
    assert "State: running" in e2b("sandbox", "info", sandbox_id)
    assert e2b("sandbox", "exec", sandbox_id, "echo", "hi") == "hi\n"
    assert "sandbox.created" in e2b("sandbox", "logs", sandbox_id)
    while "Memory" not in e2b("sandbox", "metrics", sandbox_id):
        pass  # there is a sample every few seconds
    assert "paused" in e2b("sandbox", "pause", sandbox_id)
    assert "resumed" in e2b("sandbox", "resume", sandbox_id)
    assert "base" in e2b("template", "list")
    assert "killed" in e2b("sandbox", "kill", sandbox_id)
    steps = ("create", "list", "commands", "logs", "metrics", "pause and resume", "kill")
    outcomes[release] = dict.fromkeys(steps, "ok")


def _drive(server: Server, *command: str) -> dict[str, str]:
    return _outcome(_run(server, *command))


def _outcome(said: str) -> dict[str, str]:
    """The last line of what a tour says."""
    outcome: dict[str, str] = json.loads(said.splitlines()[-1])
    return outcome


def _run(server: Server, *command: str) -> str:
    return run_program(*command, env=environment(server))
