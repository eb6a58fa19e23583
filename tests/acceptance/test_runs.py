"""Runs: what a program committed is done once, whatever dies under it."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from tests.acceptance.conftest import serve, stop
from tests.acceptance.running import House
from tests.postgres import Postgres

pytestmark = pytest.mark.timeout(300)


ADDER = """
total = 0
for number in range(run.input["count"]):
    total = run.step("add", lambda one, other: one + other, total, number)
    note(f"{number}:{os.getpid()}")
    run.emit("progress", number)
    while run.input.get("stop") == number and not os.path.exists("/home/user/go"):
        time.sleep(0.02)
run.result({"total": total, "notes": notes()})
"""


def test_steps_are_committed_one_by_one(house: House) -> None:
    house.freeze("adder", ADDER, keep=2)
    run = house.begin("adder", {"count": 3}, **{"Idempotency-Key": "once"})
    told = house.end(run)
    assert (told["state"], told["failure"]) == ("succeeded", None)
    assert told["result"]["total"] == 3
    assert [note.split(":")[0] for note in told["result"]["notes"]] == ["0", "1", "2"]
    steps = told["steps"]
    assert [(step["key"], step["number"], step["result"]) for step in steps] == [
        ("add", 1, 0),
        ("add#2", 2, 1),
        ("add#3", 3, 3),
    ]
    assert [bool(step["snapshotID"]) for step in steps] == [False, True, True]  # as many as are kept
    assert (told["epoch"], told["attempts"], told["committed"]) == (1, 1, 3)
    assert house.state_of(told["sandboxID"]) == "gone"
    assert house.told(run) == [0, 1, 2]
    events = house.call("GET", f"/runs/{run}/events").json()
    assert events[-1]["type"] == "run.succeed"
    # The same key is the same run, and never another one.
    assert house.begin("adder", {"count": 3}, **{"Idempotency-Key": "once"}) == run
    other = house.call(
        "POST", "/runs", {"agent": "adder", "input": {"count": 4}}, **{"Idempotency-Key": "once"}
    )
    assert (other.status_code, other.json()["error_code"]) == (409, "idempotency_key_reused")


def test_a_machine_that_dies_comes_back_as_it_was_committed(house: House) -> None:
    """With its memory and its processes: the same program goes on, it is not started anew."""
    house.freeze("adder", ADDER)
    run = house.begin("adder", {"count": 4, "stop": 1})
    told = house.until(run, lambda told: told["committed"] == 2)
    while house.told(run)[-1:] != [1]:
        time.sleep(0.05)
    first = told["sandboxID"]
    os.kill(house.machine(run)["sentry"]["pid"], signal.SIGKILL)
    told = house.until(run, lambda told: told["epoch"] == 2 and told["state"] == "running")
    assert told["sandboxID"] != first
    while house.told(run)[-2:] != [1, 1]:  # what came after the commit comes again
        time.sleep(0.05)
    house.files(told["sandboxID"])("POST", "go", files={"file": b""})
    told = house.end(run)
    assert (told["state"], told["result"]["total"]) == ("succeeded", 6)
    numbers, pids = zip(*(note.split(":") for note in told["result"]["notes"]), strict=True)
    assert numbers == ("0", "1", "2", "3")  # the file of the dead machine is gone with it
    assert len(set(pids)) == 1
    assert [step["attempts"] for step in told["steps"]] == [1, 1, 1, 1]
    assert told["attempts"] == 2


PLAIN = """
count=0
while [ ! -e /home/user/go ]; do count=$((count + 1)); echo $count > /home/user/count; sleep 0.05; done
echo "$$ $count"
"""


def test_a_program_that_knows_nothing_of_steps_comes_back_too(house: House) -> None:
    body = {"environment": "base", "entry": PLAIN, "every": 1}
    assert house.call("PUT", "/agents/unaware", body).status_code == 200
    run = house.begin("unaware")
    while not house.happened(run, "run.kept"):
        time.sleep(0.05)
    os.kill(house.machine(run)["sentry"]["pid"], signal.SIGKILL)
    told = house.until(run, lambda told: told["epoch"] == 2 and told["state"] == "running")
    inside = house.files(told["sandboxID"])
    count = int(inside("GET", "count").text)
    while int(inside("GET", "count").text) <= count:
        time.sleep(0.05)
    inside("POST", "go", files={"file": b""})
    output = house.end(run)["result"]["output"].split()
    assert int(output[1]) > count > 1


ASKER = """
note(str(os.getpid()))
first = run.step("think", lambda: "about it")
answer = run.ask("Shall I?", name="permission")
note(str(os.getpid()))
run.sleep(0.1)
run.result({"answer": answer, "first": first, "pids": notes()})
"""


def test_a_run_that_asks_rests_until_it_is_answered(house: House) -> None:
    house.freeze("asker", ASKER)
    run = house.begin("asker")
    told = house.until(run, lambda told: told["state"] == "waiting")
    assert [(wait["key"], wait["kind"], wait["question"]) for wait in told["waits"]] == [
        ("permission", "ask", "Shall I?")
    ]
    assert house.state_of(told["sandboxID"]) == "paused"
    wrong = house.call("POST", f"/runs/{run}/answer", {"key": "other", "answer": 1})
    assert (wrong.status_code, wrong.json()["error_code"]) == (404, "question_not_found")
    answer = {"key": "permission", "answer": {"yes": True}}
    assert house.call("POST", f"/runs/{run}/answer", answer).status_code == 204
    told = house.end(run)
    assert told["state"] == "succeeded", told
    assert told["result"]["answer"] == {"yes": True}
    assert len(set(told["result"]["pids"])) == 1
    again = house.call("POST", f"/runs/{run}/answer", answer)
    assert (again.status_code, again.json()["error_code"]) == (409, "answered_before")


PARENT = """
children = [run.spawn("child", {"number": number}) for number in range(2)]
results = [run.wait(child) for child in children]
try:
    run.call("child", {"number": -1})
except StepFailed as error:
    results.append(error.outcome["failure"]["code"])
run.result(results)
"""
CHILD = """
number = run.input["number"]
if number < 0:
    sys.exit("no such number")
run.result(run.step("square", lambda: number * number) + 10)
"""


def test_an_agent_calls_others_and_rests_meanwhile(house: House) -> None:
    house.freeze("child", CHILD, checkpoint="never")
    house.freeze("parent", PARENT)
    run = house.begin("parent")
    told = house.end(run)
    assert (told["state"], told["result"]) == ("succeeded", [10, 11, "entry_failed"]), told
    children = [each for each in house.call("GET", "/runs?agent=child").json() if each["parentID"] == run]
    assert len(children) == 3
    assert {child["trigger"]["kind"] for child in children} == {"agent"}
    events = [event["type"] for event in house.call("GET", f"/runs/{run}/events").json()]
    assert "run.wait" in events


def test_a_cancelled_run_takes_its_children_along(house: House) -> None:
    house.freeze("patient", "run.ask('for ever?')")
    house.freeze("leader", 'run.call("patient")')
    run = house.begin("leader")
    house.until(run, lambda told: told["state"] == "waiting")
    (child,) = [each for each in house.call("GET", "/runs?agent=patient").json() if each["parentID"] == run]
    house.until(child["runID"], lambda told: told["state"] == "waiting")
    assert house.call("POST", f"/runs/{run}/cancel").json()["state"] == "cancelled"
    for each in (run, child["runID"]):
        told = house.end(each)
        assert told["state"] == "cancelled"
        while house.state_of(told["sandboxID"]) != "gone":
            time.sleep(0.05)


FRAGILE = """
run.step("count", lambda: 1)
if not os.path.exists("/home/user/mended"):
    print("it is broken", flush=True)
    sys.exit(3)
run.result("mended")
"""


def test_an_entry_that_fails_says_so_and_can_be_retried(house: House) -> None:
    house.freeze("fragile", FRAGILE)
    run = house.begin("fragile")
    told = house.end(run)
    assert (told["state"], told["failure"]["code"]) == ("failed", "entry_failed")
    assert "exit status 3" in told["failure"]["message"]
    assert "it is broken" in told["failure"]["message"]
    assert house.call("POST", f"/runs/{run}/retry").json()["state"] == "recovering"
    told = house.end(run)
    assert told["state"] == "failed"
    assert [step["attempts"] for step in told["steps"]] == [1]  # it went on behind it
    refused = house.call("POST", f"/runs/{house.begin('fragile')}/retry")
    assert (refused.status_code, refused.json()["error_code"]) == (409, "illegal_transition")


def test_a_run_whose_machine_always_dies_is_given_up(house: House) -> None:
    house.freeze("doomed", "run.step('begin', lambda: 1)\ntime.sleep(600)", attempts=2)
    run = house.begin("doomed")
    for epoch in (1, 2):
        house.until(run, lambda told: told["epoch"] == epoch and told["state"] == "running")  # noqa: B023
        house.until(run, lambda told: told["committed"] == 1)
        os.kill(house.machine(run)["sentry"]["pid"], signal.SIGKILL)
    told = house.end(run)
    assert (told["state"], told["failure"]["code"]) == ("failed", "attempts_exhausted")
    assert "2 machines" in told["failure"]["message"]


def test_bad_agents_and_runs_are_refused(house: House) -> None:
    def refusal(answer: httpx.Response) -> tuple[int, str]:
        told = answer.json()
        assert told["message"].endswith(")"), told  # what to do next
        return answer.status_code, told["error_code"]

    good = {"environment": "base", "entry": "true"}
    assert refusal(house.call("PUT", "/agents/Bad_Name", good)) == (400, "bad_agent_name")
    assert refusal(house.call("PUT", "/agents/x", {**good, "entry": " "})) == (400, "bad_entry")
    assert refusal(house.call("PUT", "/agents/x", {**good, "entry": "x" * (17 << 10)})) == (400, "bad_entry")
    assert refusal(house.call("PUT", "/agents/x", {**good, "attempts": 0})) == (400, "bad_limit")
    assert refusal(house.call("PUT", "/agents/x", {**good, "every": -1})) == (400, "bad_limit")
    assert refusal(house.call("PUT", "/agents/x", {**good, "budget": {"beer": 1}})) == (400, "bad_budget")
    assert refusal(house.call("PUT", "/agents/x", {**good, "checkpoint": "x"})) == (400, "bad_checkpoint")
    assert refusal(house.call("PUT", "/agents/x", {**good, "environment": "none"})) == (
        404,
        "environment_not_found",
    )
    assert refusal(house.call("POST", "/runs", {"agent": "nobody"})) == (404, "agent_not_found")
    assert refusal(house.call("GET", "/runs/rnone")) == (404, "run_not_found")
    assert refusal(house.call("POST", "/runs", {"agent": "adder", "input": "x" * (600 << 10)})) == (
        400,
        "value_too_big",
    )


@pytest.fixture(params=["sqlite", "postgres"])
def mortal(
    tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[House]:
    if request.param == "postgres":
        database: Postgres = request.getfixturevalue("postgres")
        monkeypatch.setenv("WARDIAN_ENGINE_URL", database.new_database())
    server = serve(tmp_path)
    house = House(server)
    try:
        yield house
    finally:
        house.http.close()
        stop(house.server)


def test_a_run_outlives_its_server(mortal: House) -> None:
    """Killed at once, twice: while it works, and while it waits."""
    mortal.freeze("adder", ADDER)
    mortal.freeze("asker", ASKER)
    working = mortal.begin("adder", {"count": 12})
    waiting = mortal.begin("asker")
    mortal.until(waiting, lambda told: told["state"] == "waiting")
    mortal.until(working, lambda told: told["committed"] >= 2)
    for _ in range(2):
        mortal.kill()
        mortal = House(serve(mortal.server.data))
    try:
        told = mortal.end(working)
        assert (told["state"], told["result"]["total"]) == ("succeeded", 66), told
        numbers, pids = zip(*(note.split(":") for note in told["result"]["notes"]), strict=True)
        assert [int(number) for number in numbers] == list(range(12))
        assert len(set(pids)) == 1
        assert mortal.get(waiting)["state"] == "waiting"
        mortal.call("POST", f"/runs/{waiting}/answer", {"key": "permission", "answer": "yes"})
        assert mortal.end(waiting)["result"]["answer"] == "yes"
    finally:
        mortal.http.close()
        stop(mortal.server)


DOCUMENT = (Path(__file__).parents[2] / "docs/runs.md").read_text()
SHELL = (
    DOCUMENT[DOCUMENT.index("call() {") :].partition("call /steps")[0]
    + """
call /steps '{"key": "fetch", "input": null}' | grep -q begun || exit 4
call /steps/commit '{"key": "fetch", "result": {"rows": 7}}'
call /steps '{"key": "fetch", "input": null}' | grep -q '"rows":7' || exit 5
answer=$(call /ask '{"key": "permission", "question": "Publish?"}')
call /result "{\\"result\\": $answer}"
"""
)


def test_a_run_in_shell_and_curl(house: House) -> None:
    """With the words of the document."""
    made = house.call("PUT", "/agents/shell", {"environment": "base", "entry": SHELL})
    assert made.status_code == 200, made.text
    run = house.begin("shell")
    house.until(run, lambda told: told["state"] == "waiting")
    house.call("POST", f"/runs/{run}/answer", {"key": "permission", "answer": "do"})
    told = house.end(run)
    assert (told["state"], told["failure"]) == ("succeeded", None)
    assert told["result"] == {"state": "done", "answer": "do"}


def test_the_example_agent_as_the_documents_have_it(house: House) -> None:
    entry = Path(__file__).parents[2] / "examples/agent-digest/entry.sh"
    house.cli("agent", "freeze", "digest", "--entry-file", str(entry))
    run = house.cli("run", "start", "digest", "-i", '["one two", "three four five"]', "--detach").strip()
    house.until(run, lambda told: told["state"] == "waiting")
    assert "5 words. Go on?" in house.cli("run", "inspect", run, "--json")
    house.cli("run", "answer", run, "yes")
    assert json.loads(house.cli("run", "wait", run)) == {"words": 5, "longest": {"words": 3}}
    assert run in house.cli("run", "ls", "--agent", "digest")
    assert "run.succeed" in house.cli("run", "logs", run, "--json")
    assert "digest" in house.cli("agent", "ls")
    house.cli("agent", "freeze", "digest", "--entry", "true")
    assert json.loads(house.cli("agent", "use", "digest", "1", "--json"))["version"] == 1


def test_runs_keep_the_version_that_they_began_with(house: House) -> None:
    house.freeze("versioned", 'run.ask("wait")\nrun.result(1)')
    run = house.begin("versioned")
    house.until(run, lambda told: told["state"] == "waiting")
    house.freeze("versioned", "run.result(2)")
    assert house.end(house.begin("versioned"))["result"] == 2
    house.call("POST", f"/runs/{run}/answer", {"key": "ask", "answer": None})
    told = house.end(run)
    assert (told["version"], told["result"]) == (1, 1)
    busy = house.begin("patient2") if house.freeze("patient2", 'run.ask("?")') else ""
    refused = house.call("DELETE", "/agents/patient2")
    assert (refused.status_code, refused.json()["error_code"]) == (409, "agent_has_runs")
    house.call("POST", f"/runs/{busy}/cancel")
    assert house.call("DELETE", "/agents/patient2").status_code == 204
