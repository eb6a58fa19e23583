"""Workflows: programs outside that drive sandboxes, begun again wherever they were cut off."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.acceptance.conftest import Server, serve, stop
from tests.acceptance.running import House
from tests.acceptance.test_removal import mentions, removed

EXAMPLE = Path(__file__).parents[2] / "examples/workflow-report/report.py"
ROWS = {"rows": [3, 1, 2]}

pytestmark = pytest.mark.timeout(120)


class Worker:
    """``wardian workflow serve`` in a process of its own."""

    def __init__(self, server: Server, file: Path, *options: str) -> None:
        program = str(Path(sys.executable).with_name("wardian"))
        command = [program, "workflow", "--data", str(server.data), "serve", str(file), *options]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        self.told = self.process.stderr.readline()

    def end(self, signo: signal.Signals = signal.SIGTERM) -> str:
        """What it said until then."""
        self.process.send_signal(signo)
        return self.process.communicate(timeout=60)[1]


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WARDIAN_DRIVERS", "gvisor")
        patch.setenv("WARDIAN_WORKER_LEASE_S", "2")
        house = House(serve(tmp_path_factory.mktemp("workflows")))
    try:
        yield house
    finally:
        house.http.close()
        stop(house.server)


@pytest.fixture
def working(house: House) -> Iterator[Callable[..., Worker]]:
    """Makes workers, which end with the test."""
    workers: list[Worker] = []

    def work(file: Path, *options: str) -> Worker:
        workers.append(Worker(house.server, file, *options))
        return workers[-1]

    yield work
    for worker in workers:
        if worker.process.poll() is None:
            worker.end()


def boxes(house: House, run: str) -> list[dict[str, Any]]:
    found = house.http.get("/v2/sandboxes", params={"metadata": f"wardian.run={run}"}).json()
    return list(found)


def test_the_example_as_the_documents_have_it(house: House, working: Callable[..., Worker]) -> None:
    worker = working(EXAMPLE)
    assert worker.told.startswith("report is version 1, sha256:"), worker.told
    run = house.cli("run", "start", "report", "--detach", "-i", '{"rows": [3, 1, 2]}').strip()
    told = house.until(run, lambda told: told["state"] == "waiting")
    assert [(step["key"], step["number"]) for step in told["steps"]] == [("check", 1), ("box.run", 2)]
    assert [box["state"] for box in boxes(house, run)] == ["paused"]
    house.cli("run", "answer", run, "yes")
    told = house.end(run)
    assert (told["state"], told["result"]) == ("succeeded", {"published": [1, 2, 3], "kept": [3, 1, 2]})
    assert [step["attempts"] for step in told["steps"]] == [1, 1, 1, 1]
    while boxes(house, run):  # what is over is cleared up after it was told
        time.sleep(0.05)
    # Its sandboxes are gone, so it goes back to its beginning only.
    refused = house.call("POST", f"/runs/{run}/rewind", {"commit": 2})
    assert (refused.status_code, refused.json()["error_code"]) == (501, "boxes_not_kept")
    assert house.call("POST", f"/runs/{run}/rewind", {"commit": 0}).status_code == 200
    house.until(run, lambda told: told["state"] == "waiting")
    refused = house.call("POST", f"/runs/{run}/pause")
    assert (refused.status_code, refused.json()["error_code"]) == (501, "workflow_not_pausable")
    house.cli("run", "answer", run, "no")
    assert house.end(run)["result"] == {"published": None}


COUNTS = """
import os, pathlib, time
from wardian.workflows import run, step, workflow

@step
def effect(what):
    with open(os.environ["EFFECTS"], "a") as file:
        file.write(what + "\\n")
    return what

@workflow
def counter(input):
    box = run.sandbox("base")
    for number in range(3):
        effect(f"effect {number}")
        box.run(f"echo {number} >> log; echo $((2 * $(cat memory 2>/dev/null || echo 1))) > memory")
        if input == number:
            pathlib.Path(os.environ["EFFECTS"] + ".here").touch()
            box.run("while [ ! -e go ]; do sleep 0.05; done; rm go; echo went >> log")
    return [box.read("log").split(), box.read("memory").strip()]
"""


@pytest.mark.parametrize("victim", ["worker", "machine"])
def test_what_dies_in_the_middle_changes_nothing(
    house: House,
    working: Callable[..., Worker],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    victim: str,
) -> None:
    """The next worker finds each sandbox as its last commit left it, and does no committed step again."""
    effects = tmp_path / "effects"
    monkeypatch.setenv("EFFECTS", str(effects))
    (tmp_path / "counter.py").write_text(COUNTS)
    worker = working(tmp_path / "counter.py")
    run = house.begin("counter", 1)
    here = tmp_path / "effects.here"
    while not here.exists():
        time.sleep(0.05)
    house.until(run, lambda told: len(told["steps"]) == 5)
    (box,) = boxes(house, run)
    house.files(box["sandboxID"])("POST", "log", files={"file": b"spoilt"})  # in a step that is not committed
    here.unlink()
    if victim == "worker":
        worker.end(signal.SIGKILL)
        working(tmp_path / "counter.py")
    else:
        os.kill(house.machine_of(box["sandboxID"])["sentry"]["pid"], signal.SIGKILL)
    while not here.exists():  # it was begun again, and is at the same place
        time.sleep(0.05)
    (again,) = boxes(house, run)
    assert again["sandboxID"] != box["sandboxID"]
    house.files(again["sandboxID"])("POST", "go", files={"file": b""})
    told = house.end(run)
    assert (told["state"], told["failure"]) == ("succeeded", None)
    assert told["result"] == [["0", "1", "went", "2"], "8"]
    assert effects.read_text().split("\n")[:-1] == ["effect 0", "effect 1", "effect 2"]


CHANGED = """
from wardian.workflows import run, step, workflow

@workflow
def changing(input):
    {steps}
    return run.ask("Well?")
"""


def test_changed_code_takes_no_run_over_unless_it_fits(
    house: House, working: Callable[..., Worker], tmp_path: Path
) -> None:
    file = tmp_path / "changing.py"
    file.write_text(CHANGED.format(steps='run.step("one", str, 1)'))
    first = working(file)
    runs = [house.begin("changing") for _ in range(2)]
    for run in runs:
        house.until(run, lambda told: told["state"] == "waiting")
    first.end()
    file.write_text(CHANGED.format(steps='run.step("two", str, 1)'))
    second = working(file)
    assert "version 2" in second.told
    house.call("POST", f"/runs/{runs[0]}/answer", {"key": "ask", "answer": 1})
    new = house.begin("changing")
    house.until(new, lambda told: told["state"] == "waiting")  # it works, and leaves the old run alone
    assert house.get(runs[0])["state"] == "starting"
    second.end()
    adopting = working(file, "--adopt")
    failed = house.end(runs[0])
    assert failed["failure"]["code"] == "workflow_changed"
    assert "committed one before" in failed["failure"]["message"]
    adopting.end()
    # Nothing is lost: with the code that it began with, it goes on.
    file.write_text(CHANGED.format(steps='run.step("one", str, 1)'))
    third = working(file)
    assert "version 1" in third.told
    house.call("POST", f"/runs/{runs[0]}/retry")
    house.call("POST", f"/runs/{runs[1]}/answer", {"key": "ask", "answer": 2})
    ends = [house.end(run) for run in runs]
    assert [(told["failure"], told["result"]) for told in ends] == [(None, 1), (None, 2)]
    house.call("POST", f"/runs/{new}/cancel")


BAD = """
from wardian.workflows import run, step, workflow

@step(tries=2)
def fails(what):
    raise ValueError(what)

@workflow
def failing(input):
    if input == "command":
        run.sandbox("base").run("echo no >&2; exit 3")
    elif input == "key":
        run.step("same", str, input)
        run._counts.clear()
        run.step("same", str, "another")
    else:
        fails("in vain")
"""


def test_a_workflow_that_fails_says_why(house: House, working: Callable[..., Worker], tmp_path: Path) -> None:
    (tmp_path / "failing.py").write_text(BAD)
    working(tmp_path / "failing.py")
    for input, code, words in (
        ("step", "workflow_failed", "ValueError: in vain"),
        ("command", "workflow_failed", "ended with 3: no"),
        ("key", "step_changed", "another input"),
    ):
        told = house.end(house.begin("failing", input))
        assert (told["state"], told["failure"]["code"]) == ("failed", code)
        assert words in told["failure"]["message"]
    _, command, first = house.call("GET", "/runs?agent=failing").json()
    steps = house.get(first["runID"])["steps"]
    assert [(step["key"], step["attempts"]) for step in steps] == [("fails", 2)]
    # The machines of its sandboxes are kept for a retry, until it is removed.
    (machine,) = [step["snapshotID"] for step in house.get(command["runID"])["steps"]]
    assert (house.server.data / "snapshots" / machine).exists()
    removed(house, f"/runs/{command['runID']}")
    assert not (house.server.data / "snapshots" / machine).exists()
    left = mentions(house.server.data / "wardian.db", command["runID"], machine)
    assert set(left) <= {"run_removed", "sandbox", "sandbox_metadata"}, left


def test_a_worker_speaks_for_what_it_has_and_no_other(house: House) -> None:
    body = {"outside": True, "entry": "sha256:" + "0" * 64}
    assert house.call("PUT", "/agents/held", body).status_code == 200
    run = house.begin("held")
    claim = {"worker": "me", "versions": {"held": [1]}, "wait": 20}
    taken = house.call("POST", "/work", claim).json()
    assert (taken["runID"], taken["epoch"]) == (run, 1)
    assert house.call("POST", "/work", {**claim, "wait": 0}).json() is None  # it is taken
    mine = {"Wardian-Epoch": "1"}
    begun = house.call("POST", f"/work/{run}/steps", {"key": "s", "input": None}, **mine)
    assert begun.json()["state"] == "begun"
    for headers, status, code in (
        ({"Wardian-Epoch": "2"}, 409, "run_superseded"),
        ({"Wardian-Epoch": "x"}, 400, "invalid_argument"),
        ({}, 400, "invalid_argument"),
    ):
        refused = house.call("POST", f"/work/{run}/steps", {"key": "s", "input": None}, **headers)
        assert (refused.status_code, refused.json()["error_code"]) == (status, code)
    inside = house.call("POST", f"/work/{run}/boxes/run", {"key": "k", "box": "b", "command": "true"}, **mine)
    assert (inside.status_code, inside.json()["error_code"]) == (404, "box_not_open")
    # Nothing is heard of it, so another one may take it; and the first one is too late.
    taken = house.call("POST", "/work", claim).json()
    assert (taken["runID"], taken["epoch"]) == (run, 2)
    late = house.call("POST", f"/work/{run}/steps/commit", {"key": "s", "result": 1}, **mine)
    assert (late.status_code, late.json()["error_code"]) == (409, "run_superseded")
    assert house.call("POST", f"/work/{run}/end", {}, **{"Wardian-Epoch": "2"}).json()["state"] == "succeeded"
    for body, code in (
        ({"outside": True, "entry": "true"}, "bad_workflow"),
        ({"outside": True, "entry": "sha256:" + "0" * 64, "environment": "base"}, "bad_workflow"),
    ):
        refused = house.call("PUT", "/agents/other", body)
        assert (refused.status_code, refused.json()["error_code"]) == (400, code)
