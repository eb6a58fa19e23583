"""The example agent, whole: a model through the bridge, tools, a chart, files; whatever dies meanwhile."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from examples.scripted_model import ANSWER, KEY, ScriptedModel
from tests.acceptance.conftest import serve, stop
from tests.acceptance.needles import forms_of, search
from tests.acceptance.running import House
from tests.acceptance.templates import build

pytestmark = pytest.mark.timeout(300)

EXAMPLE = Path(__file__).parents[2] / "examples/analyst"
INPUT = {"question": "How are sales?", "csv": "month,sales\nJan,10\nFeb,20\nMar,30\n"}
STEPS = ["turn 1", "turn 1, run_code 1", "turn 2", "turn 2, make_chart 1", "turn 2, publish 2", "turn 3"]
ONCE = {"turn 1": 1, "turn 2": 1, "turn 3": 1, "post": 1}


@pytest.fixture(scope="module")
def scripted() -> Iterator[ScriptedModel]:
    with ScriptedModel() as model:
        yield model


@pytest.fixture
def model(scripted: ScriptedModel) -> ScriptedModel:
    """Which has counted nothing yet."""
    scripted.forget()
    return scripted


@pytest.fixture(scope="module")
def house(scripted: ScriptedModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """The analyst, deployed; its model is on this host."""
    data = tmp_path_factory.mktemp("analyst")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WARDIAN_ALLOWED_NETWORKS", "127.0.0.0/8")
        patch.setenv("WARDIAN_DRIVERS", "gvisor")
        house = House(serve(data))
        try:
            deploy(house, scripted, data / "example")
            yield house
        finally:
            house.http.close()
            stop(house.server)


def deploy(house: House, model: ScriptedModel, directory: Path) -> None:
    made = house.http.post("/secrets", json={"name": "model-key", "value": KEY})
    assert made.is_success, made.text
    for name, more in (("openai", {"preset": "openai", "inDoubt": "safe"}), ("board", {"inDoubt": "keyed"})):
        grant: dict[str, Any] = {
            "name": name,
            "secret": "model-key",
            "host": "localhost",
            "port": model.port,
            "tls": False,
            "intercept": False,
            "injector": {"kind": "bearer"},
            **more,
        }
        assert house.call("POST", "/grants", grant).is_success
    shutil.copytree(EXAMPLE, directory)
    build(house.server, directory, "--name", "analyst")
    entry = "exec python3 /opt/analyst/agent.py"
    agent = {"environment": "analyst", "entry": entry, "env": {"ANALYST_SILENCE_S": "2"}, "every": 0}
    assert house.call("PUT", "/agents/analyst", agent).is_success


def kill_machine(house: House, run: str) -> None:
    """And wait until the next one asks the bridge for what the dead one did not live to hear."""
    epoch = house.get(run)["epoch"]
    os.kill(house.machine(run)["sentry"]["pid"], signal.SIGKILL)
    told = house.until(run, lambda told: told["epoch"] > epoch and told["state"] == "running")
    log = house.server.data / "events" / f"{told['sandboxID']}.jsonl"
    while '"bridge.request"' not in log.read_text():
        time.sleep(0.05)


def check_end(house: House, model: ScriptedModel, run: str) -> None:
    """As if nothing had happened."""
    told = house.end(run)
    assert (told["state"], told["failure"]) == ("succeeded", None)
    assert (told["result"]["answer"], told["result"]["turns"]) == (ANSWER, 3)
    assert [(step["key"], step["number"]) for step in told["steps"]] == [
        (key, number) for number, key in enumerate(STEPS, 1)
    ]
    assert told["steps"][1]["result"].startswith("60.0\n")
    assert house.call("GET", f"/runs/{run}/files").json() == told["result"]["files"]
    assert [file["name"] for file in told["result"]["files"]] == ["chart.svg", "report.md"]
    assert "<svg" in house.call("GET", f"/runs/{run}/files/chart.svg").text
    assert ANSWER in house.call("GET", f"/runs/{run}/files/report.md").text
    assert (dict(model.done), model.posts, model.strangers) == (ONCE, ["Sales are growing"], 0)


def test_machines_die_while_a_model_or_a_tool_answers(house: House, model: ScriptedModel) -> None:
    """Nothing is asked for twice: the answer is waited for, and given to the next machine."""
    first, post = model.hold("turn 1"), model.hold("post")
    run = house.begin("analyst", INPUT)
    assert first.reached.wait(60)  # before anything was committed: the entry is started anew
    kill_machine(house, run)
    first.go.set()
    assert post.reached.wait(60)  # in the middle of the loop: the machine comes back
    written = [
        house.server.data / name for name in ("snapshots", "events", "runs", "wardian.db", "server.log")
    ]
    assert any(path.is_file() for path in written[0].rglob("*"))
    assert search(written, list(forms_of(KEY))) == {}
    kill_machine(house, run)
    post.go.set()
    check_end(house, model, run)
    assert dict(model.asked) == ONCE
    assert house.get(run)["attempts"] == 3


def test_a_server_dies_and_a_model_fails_in_every_way(house: House, model: ScriptedModel) -> None:
    """What was under way is asked for again, under the same key; what fails is, within bounds."""
    model.faults["turn 1"] = deque([429, 503, "cut"])
    post = model.hold("post")
    run = house.begin("analyst", INPUT)
    assert post.reached.wait(60)
    house.kill()
    house.enter(serve(house.server.data))
    post.go.set()
    check_end(house, model, run)
    assert dict(model.asked) == {**ONCE, "turn 1": 4, "post": 2}
    assert house.get(run)["epoch"] == 1  # its machine outlived it
    assert house.call("GET", "/effects?inDoubt=true").json() == []
