"""What nobody needs may go: runs with all that hangs on them, and releases of runners."""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from e2b import Sandbox
from tests.acceptance.releasing import python_runner, release
from tests.acceptance.running import House
from tests.acceptance.templates import key_of

pytestmark = pytest.mark.timeout(300)

PARENT = """
if run.input == "child":
    run.result(run.receive("order", seconds=0.1) is None)
else:
    memory = [run.step("first", lambda: 1), run.call("kept", "child")]
    with open("report", "w") as file:
        file.write("done")
    run.file("report")
    memory.append(run.step("second", lambda: 2))
    run.result(memory)
"""
ASKING = 'run.result([run.step("first", lambda: 1), run.ask("Well?")])'


def refused(house: House, path: str, code: str, *words: str) -> None:
    """That something is not removed: why, by whose fault, and what to do."""
    answer = house.call("DELETE", path)
    assert (answer.status_code, answer.json()["error_code"]) == (409, code), answer.text
    for word in words:
        assert word in answer.text


def removed(house: House, path: str) -> None:
    answer = house.call("DELETE", path)
    assert answer.status_code == 204, answer.text


def mentions(database: Path, *words: str) -> dict[str, int]:
    """How many rows of which tables have one of these words in them."""
    found: dict[str, int] = {}
    with closing(sqlite3.connect(database)) as connection:
        names = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        for (name,) in names:
            for row in connection.execute(f'SELECT * FROM "{name}"'):
                if any(word in str(value) for word in words for value in row):
                    found[name] = found.get(name, 0) + 1
    return found


def test_a_run_goes_with_all_that_hangs_on_it_but_what_it_cost(house: House) -> None:
    data = house.server.data
    house.freeze("kept", PARENT, keep=3, budget={"calls": 5})
    run = house.begin("kept", **{"Idempotency-Key": "order-17"})
    told = house.end(run)
    assert told["result"] == [1, True, 2], told
    (child,) = [each["runID"] for each in house.call("GET", f"/runs/{run}/tree").json()[1:]]
    snapshots = [step["snapshotID"] for step in told["steps"] if step["snapshotID"]]
    assert len(snapshots) == 2
    cost = house.metered(told["sandboxID"])
    # It is needed: by its parent, by a fork that goes on with its machine.
    refused(house, f"/runs/{child}", "run_has_parent", f"wardian run rm {run}")
    house.freeze("kept", ASKING, keep=3)
    fork = house.call("POST", f"/runs/{run}/fork", {}).json()["runID"]
    house.end(fork)
    refused(house, f"/runs/{run}", "run_has_forks", f"wardian run rm {fork}")
    removed(house, f"/runs/{fork}")

    with httpx.Client(headers={"X-API-KEY": key_of(house.server, "others")}, trust_env=False) as other:
        foreign = other.delete(f"{house.server.url}/wardian/runs/{run}")
    assert (foreign.status_code, foreign.json()["error_code"]) == (404, "run_not_found")

    house.cli("run", "rm", run)
    for each in (run, child):
        assert house.call("GET", f"/runs/{each}").json()["error_code"] == "run_not_found"
        left = mentions(data / "wardian.db", each)
        assert set(left) <= {"run_removed", "sandbox", "sandbox_metadata"}, left
        assert not (data / "files" / each).exists()
        assert "run.remove" in (data / "runs" / f"{each}.jsonl").read_text()  # which has a time of its own
        while mentions(data / "engine.db", each):
            time.sleep(0.05)  # it was just about to end
    assert set(mentions(data / "wardian.db", *snapshots)) <= {"sandbox"}  # what the fork was made from
    assert not {path.name for path in (data / "snapshots").iterdir()}.intersection(snapshots)
    assert house.metered(told["sandboxID"]) == cost
    # A key begins one run, ever.
    again = house.call("POST", "/runs", {"agent": "kept"}, **{"Idempotency-Key": "order-17"})
    assert (again.status_code, again.json()["error_code"]) == (409, "run_removed")
    assert run in again.text

    last = house.begin("kept", **{"Idempotency-Key": "order-18"})
    house.until(last, lambda told: told["state"] == "waiting")
    refused(house, f"/runs/{last}", "run_alive", f"wardian run cancel {last}")
    house.call("POST", f"/runs/{last}/cancel")
    removed(house, f"/runs/{last}")
    house.call("DELETE", "/agents/kept")


def test_a_release_goes_when_nothing_needs_it(house: House, tmp_path: Path) -> None:
    def released(version: str, name: str = "many", **query: Any) -> str:
        work = 'return [run.step("first", lambda: 1), run.ask("Well?")]'
        made = release(house, python_runner(tmp_path, version, work=work), name, **query)
        return str(made["release"])

    def path(digest: str) -> str:
        return f"/runners/many/releases/{digest}"

    kept = house.server.data / "runners"
    first, second = released("1"), released("2")
    frozen = house.call("PUT", "/agents/many", {"environment": "base", "runner": "many"})
    assert frozen.status_code == 200, frozen.text
    run = house.begin("many")
    house.until(run, lambda told: told["state"] == "waiting")
    box = Sandbox.create(timeout=300)
    swap = {"runner": "many", "release": first}
    assert house.call("POST", f"/sandboxes/{box.sandbox_id}/runner", swap).is_success
    third, fourth = released("3"), released("4")
    fifth = released("5", canary=10)
    assert released("1", "twin") == first
    refused(house, path(fourth), "release_in_use", "new runs get", "wardian runner use many")
    refused(house, path(third), "release_in_use", "to go back to")
    refused(house, path(fifth), "release_in_use", "canary", "wardian runner canary many --share 0")
    refused(house, path(first), "release_in_use", f"wardian sandbox kill {box.sandbox_id}")
    refused(house, path(second), "release_in_use", f"wardian run cancel {run}")
    refused(house, "/runners/many", "runner_in_use", "version 1 of agent many", "wardian agent rm many")
    missing = house.call("DELETE", path("0" * 64))
    assert (missing.status_code, missing.json()["error_code"]) == (404, "release_not_found")

    box.kill()
    house.cli("runner", "rm", "many", first[:16])
    assert (kept / first).is_dir()  # it is another runner's as well
    house.cli("runner", "rm", "twin")
    assert not (kept / first).exists()
    # A run that is over has it open yet, in the machine that is kept of it.
    house.call("POST", f"/runs/{run}/cancel")
    house.until(run, lambda told: told["state"] == "cancelled")
    refused(house, path(second), "release_in_use", f"wardian run rm {run}")
    removed(house, f"/runs/{run}")
    removed(house, path(second))
    assert not (kept / second).exists()
    told = house.call("GET", "/runners/many").json()
    assert [each["version"] for each in told["releases"]] == ["5", "4", "3"]
    again = released("2")  # as if it had never been
    assert house.call("GET", "/runners/many").json()["current"] == again == second
    house.call("DELETE", "/agents/many")
    removed(house, "/runners/many")
    assert house.call("GET", "/runners/many").status_code == 404
    assert not {path.name for path in kept.iterdir()}.intersection({second, third, fourth, fifth})
