"""Many runs: going back to a commit, forks, messages, and the bounds on what comes of one."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from tests.acceptance.running import House

pytestmark = pytest.mark.timeout(300)


DRAWER = """
drawn = []
for number in range(3):
    drawn.append(run.step("draw", lambda n: [n, time.monotonic_ns(), os.getpid()], number))
    note(str(number))
run.result({"drawn": drawn, "notes": notes(), "run": run.facts["run"]})
"""


def test_a_run_goes_back_to_a_commit(house: House) -> None:
    """What was committed by then stays, files included; what came later is done again by the same process."""
    house.freeze("drawer", DRAWER, keep=3)
    run = house.begin("drawer")
    first = house.end(run)["result"]
    again = house.call("POST", f"/runs/{run}/rewind", {"commit": 2})
    assert (again.status_code, again.json()["state"]) == (200, "recovering")
    assert house.get(run)["committed"] == 2
    second = house.end(run)["result"]
    assert second["notes"] == first["notes"] == ["0", "1", "2"]
    assert second["drawn"][:2] == first["drawn"][:2]
    assert second["drawn"][2][2] == first["drawn"][2][2]  # the same process
    assert second["drawn"][2][1] != first["drawn"][2][1]  # did it another time
    # From the beginning there is no machine: the entry is started anew.
    house.call("POST", f"/runs/{run}/rewind", {"commit": 0})
    third = house.end(run)["result"]
    assert third["drawn"][0] != first["drawn"][0]
    missing = house.call("POST", f"/runs/{run}/rewind", {"commit": 9})
    assert (missing.status_code, missing.json()["error_code"]) == (400, "commit_not_found")


def test_a_fork_is_what_the_run_was(house: House) -> None:
    house.freeze("drawer", DRAWER, keep=3)
    run = house.begin("drawer")
    first = house.end(run)["result"]
    forked = house.call("POST", f"/runs/{run}/fork", {"commit": 1})
    assert forked.status_code == 202
    told = forked.json()
    assert (told["forkedFrom"], told["trigger"]) == (run, {"kind": "fork", "run": run, "commit": 1})
    second = house.end(told["runID"])
    assert second["result"]["run"] == told["runID"]
    assert second["result"]["drawn"][0] == first["drawn"][0]
    assert second["result"]["drawn"][1][1] != first["drawn"][1][1]
    assert [step["number"] for step in second["steps"]] == [1, 2, 3]
    assert house.get(run)["result"] == first
    # What a run kept may be forked once more after a fork is over.
    third = house.call("POST", f"/runs/{run}/fork", {"commit": 2}).json()["runID"]
    assert house.end(third)["result"]["drawn"][:2] == first["drawn"][:2]
    fourth = house.call("POST", f"/runs/{third}/fork", {"commit": 2}).json()["runID"]  # a fork of a fork
    assert house.end(fourth)["result"]["drawn"][:2] == first["drawn"][:2]
    refused = house.call("POST", f"/runs/{run}/fork", {"commit": 1, "input": 7})
    assert (refused.status_code, refused.json()["error_code"]) == (400, "bad_fork")


TALKER = """
if run.input == "child":
    run.send(run.facts["parent"], {"pid": os.getpid()}, topic="ready")
    run.result(run.receive("order")["body"] + 1)
else:
    child = run.spawn("talker", "child")
    ready = run.receive("ready")
    assert ready["from"] == child and ready["body"]["pid"], ready
    run.send(child, 41, topic="order")
    nothing = run.receive("never", seconds=0.1)
    outside = run.receive("human")
    run.result([run.wait(child), nothing, outside])
"""


def test_runs_of_a_tree_talk(house: House) -> None:
    """Who waits for a message rests; each message is received once."""
    house.freeze("talker", TALKER)
    run = house.begin("talker", "parent")
    asks = house.until(run, lambda told: any(wait.get("topic") == "human" for wait in told["waits"]))
    assert asks["waits"][0]["kind"] == "message"
    for _ in range(2):  # with one key it is told once
        sent = house.call(
            "POST", f"/runs/{run}/messages", {"topic": "human", "body": "go"}, **{"Idempotency-Key": "k"}
        )
        assert (sent.status_code, sent.json()["number"]) == (202, 2)
    told = house.end(run)
    assert told["state"] == "succeeded", told
    assert told["result"] == [42, None, {"topic": "human", "body": "go", "from": None}]
    tree = house.call("GET", f"/runs/{run}/tree").json()
    assert [(each["parentID"], each["rootID"]) for each in tree] == [(None, run), (run, run)]
    late = house.call("POST", f"/runs/{run}/messages", {"body": "late"})
    assert (late.status_code, late.json()["error_code"]) == (409, "run_over")


STRANGER = """
from wardian_run import RunError
try:
    run.send(run.input, "hello")
except RunError as error:
    run.result(error.code)
"""


def test_a_run_talks_to_its_own_tree_only(house: House) -> None:
    house.freeze("listener", 'run.result(run.receive("order"))')
    house.freeze("stranger", STRANGER)
    waiter = house.begin("listener")
    run = house.begin("stranger", waiter)
    assert house.end(run)["result"] == "run_not_found"
    house.call("POST", f"/runs/{waiter}/cancel")


FANNER = """
if run.input is None:
    children = [run.spawn("fanner", number) for number in range(4)]
    try:
        run.spawn("fanner", 4)
    except RunError as error:
        children.append(error.code)
    run.result([run.wait(child) if child.startswith("r") else child for child in children])
else:
    run.emit("begun")
    while not os.path.exists("/home/user/go"):
        time.sleep(0.05)
    run.result(run.input)
"""


def test_a_run_has_so_many_at_work_and_no_more(house: House) -> None:
    house.freeze("fanner", "from wardian_run import RunError\n" + FANNER, atOnce=2, tree=5)
    run = house.begin("fanner")

    def states() -> dict[str, Any]:
        tree = house.call("GET", f"/runs/{run}/tree").json()[1:]
        return {each["runID"]: each for each in tree}

    let_go: set[str] = set()
    most = 0
    while len(let_go) < 4:
        now = states()
        working = [each for each in now.values() if each["state"] in ("starting", "running")]
        most = max(most, len(working))
        for each in working:
            if each["runID"] not in let_go and len(now) == 4 and house.told(each["runID"]) == [None]:
                assert len(working) <= 2
                house.files(each["sandboxID"])("POST", "go", files={"file": b""})
                let_go.add(each["runID"])
        time.sleep(0.05)  # the API has no call that waits
    told = house.end(run)
    assert told["result"] == [0, 1, 2, 3, "tree_full"]
    assert most == 2


COUNTS = """
count = 0
while not os.path.exists("/home/user/go"):
    count += 1
    time.sleep(0.02)
run.result({"asked": run.ask("And?"), "pid": os.getpid(), "count": count})
"""


def test_a_run_is_paused_in_the_middle_and_resumed(house: House) -> None:
    """It rests until it is resumed, also if what it waits for comes before that."""
    house.freeze("counts", COUNTS)
    run = house.begin("counts")
    house.until(run, lambda told: told["state"] == "running")
    assert house.call("POST", f"/runs/{run}/resume").json()["error_code"] == "not_paused"
    for _ in range(2):  # once more is the same
        assert house.call("POST", f"/runs/{run}/pause").status_code == 200
    told = house.until(run, lambda told: told["state"] == "waiting")
    assert house.state_of(told["sandboxID"]) == "paused"
    assert [wait["kind"] for wait in told["waits"]] == ["pause"]
    assert house.call("POST", f"/runs/{run}/resume").status_code == 200
    told = house.until(run, lambda told: told["state"] == "running")
    house.files(told["sandboxID"])("POST", "go", files={"file": b""})
    house.until(run, lambda told: told["state"] == "waiting")
    house.call("POST", f"/runs/{run}/pause")
    house.call("POST", f"/runs/{run}/answer", {"key": "ask", "answer": "go on"})
    assert house.get(run)["state"] == "waiting"
    house.cli("run", "resume", run)
    assert house.end(run)["result"]["asked"] == "go on"
    late = house.call("POST", f"/runs/{run}/pause")
    assert (late.status_code, late.json()["error_code"]) == (409, "illegal_transition")


def test_limits_that_cannot_be(house: House) -> None:
    for body, code in (
        ({"keep": 0}, "bad_limit"),
        ({"atOnce": 0}, "bad_limit"),
        ({"tree": 1001}, "bad_limit"),
        ({"budget": {"apples": 1}}, "bad_budget"),
        ({"budget": {"calls": -1}}, "bad_budget"),
    ):
        refused = house.call("PUT", "/agents/never", {"environment": "base", "entry": "true", **body})
        assert (refused.status_code, refused.json()["error_code"]) == (400, code)
    bare = house.call("PUT", "/agents/never", {"environment": "base"})
    assert (bare.status_code, bare.json()["error_code"]) == (400, "bad_entry")
    assert house.call("GET", "/agents/never").status_code == 404


def test_an_agent_is_edited_and_the_version_before_stays(house: House) -> None:
    house.freeze("edited", 'run.result(open("/home/user/made").read() if run.input else None)')
    first = house.call("GET", "/agents/edited").json()
    house.cli("agent", "edit", "edited", "--run", "echo -n by hand > made")
    told = house.call("GET", "/agents/edited").json()
    assert (told["version"], len(told["versions"])) == (2, 2)
    assert told["versions"][1] == first["versions"][0]
    changed = {name for name, value in told["versions"][0].items() if value != told["versions"][1][name]}
    assert changed == {"version", "environment", "createdAt"}
    assert house.end(house.begin("edited", True))["result"] == "by hand"
    old = house.call("POST", "/runs", {"agent": "edited", "input": True, "version": 1}).json()["runID"]
    assert house.end(old)["failure"]["code"] == "entry_failed"  # the file was never there
    living = house.http.get("/v2/sandboxes", params={"metadata": "wardian.edits=edited"}).json()
    assert living == []


def test_the_command_line_goes_back_forks_and_tells(house: House) -> None:
    house.freeze("drawer", DRAWER, keep=3)
    run = house.cli("run", "start", "drawer", "--detach").strip()
    house.cli("run", "wait", run)
    house.cli("run", "rewind", run, "--to", "1")
    first = json.loads(house.cli("run", "wait", run))
    forked = json.loads(house.cli("run", "fork", run, "--at", "2", "--json"))["runID"]
    assert json.loads(house.cli("run", "wait", forked))["drawn"][:2] == first["drawn"][:2]
    house.freeze("listener", 'run.result(run.receive("order"))')
    listener = house.begin("listener")
    house.cli("run", "send", listener, "41", "--topic", "order")
    assert listener in house.cli("run", "tree", listener)
    assert house.end(listener)["result"]["body"] == 41
