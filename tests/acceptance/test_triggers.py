"""One way in: whatever begins a run, it is the same run. And what begins them by itself."""

from __future__ import annotations

import hashlib
import hmac
import json
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.acceptance.conftest import Server
from tests.acceptance.running import House

INPUT = {"text": "the same for all"}
ECHO = """
said = run.step("echo", lambda given: given["text"].upper(), run.input)
run.emit("said", said)
run.result({"said": said})
"""
CALLER = 'run.result(run.call("echo", run.input))'


@pytest.fixture(scope="module")
def house(server: Server) -> Iterator[House]:
    house = House(server)
    house.freeze("echo", ECHO, checkpoint="never")
    yield house
    house.http.close()


def signed(secret: str, body: bytes, *, delivery: str = "", at: float | None = None) -> dict[str, str]:
    seconds = str(int(time.time() if at is None else at))
    what = b".".join((seconds.encode(), delivery.encode(), body))
    signature = hmac.new(secret.encode(), what, hashlib.sha256).hexdigest()
    headers = {"Wardian-Signature": f"t={seconds},v1={signature}", "Content-Type": "application/json"}
    return headers | ({"Wardian-Delivery": delivery} if delivery else {})


def hook(house: House) -> tuple[str, str]:
    made = house.call("POST", "/agents/echo/webhooks").json()
    return made["path"], made["secret"]


def deliver(house: House, path: str, body: bytes, headers: Mapping[str, str]) -> httpx.Response:
    """Without a key: whoever signs may."""
    return httpx.post(house.server.url + path, content=body, headers=headers, trust_env=False)


def set_due(house: House, trigger: str, at: int) -> None:
    with closing(sqlite3.connect(house.server.data / "wardian.db", timeout=10)) as database, database:
        database.execute("UPDATE agent_trigger SET next_at = ? WHERE id = ?", [at, trigger])


def runs_by(house: House, kind: str, **detail: Any) -> list[dict[str, Any]]:
    found = house.call("GET", "/runs?agent=echo").json()
    wanted = {"kind": kind, **detail}.items()
    return [run for run in found if wanted <= run["trigger"].items()]


def by_schedule(house: House) -> str:
    body = {"cron": "0 0 1 1 *", "input": INPUT}
    made = house.call("POST", "/agents/echo/schedules", body)
    assert made.status_code == 201, made.text
    trigger = made.json()["triggerID"]
    set_due(house, trigger, int(time.time() * 1e6))
    # The clock looks again when a schedule is added; this one is due at once.
    other = house.call("POST", "/agents/echo/schedules", body).json()["triggerID"]
    while not (found := runs_by(house, "schedule", schedule=trigger)):
        time.sleep(0.05)
    house.call("DELETE", f"/triggers/{trigger}")
    house.call("DELETE", f"/triggers/{other}")
    return str(found[0]["runID"])


def by_agent(house: House) -> str:
    house.freeze("caller", CALLER)
    parent = house.begin("caller", INPUT)
    assert house.end(parent)["state"] == "succeeded"
    (child,) = runs_by(house, "agent", run=parent)
    return str(child["runID"])


def by_cli(house: House) -> str:
    wardian, there = str(Path(sys.executable).with_name("wardian")), ("--data", str(house.server.data))
    said = subprocess.run(
        [wardian, "run", *there, "start", "echo", "--input", json.dumps(INPUT), "--json"],
        capture_output=True,
        text=True,
        check=True,
    )
    return str(json.loads(said.stdout)["runID"])


def by_webhook(house: House) -> str:
    path, secret = hook(house)
    body = json.dumps(INPUT).encode()
    return str(deliver(house, path, body, signed(secret, body)).json()["runID"])


def test_every_way_in_is_the_same_but_for_its_trigger(house: House) -> None:
    ways: dict[str, Callable[[], str]] = {
        "api": lambda: house.begin("echo", INPUT),
        "cli": lambda: by_cli(house),
        "webhook": lambda: by_webhook(house),
        "schedule": lambda: by_schedule(house),
        "agent": lambda: by_agent(house),
    }
    seen = {}
    for way, begin in ways.items():
        run = begin()
        told = house.end(run)
        events = [event["type"] for event in house.call("GET", f"/runs/{run}/events").json()]
        bill = house.metered(told["sandboxID"])
        times = ("createdAt", "startedAt", "endedAt", "deadlineAt")
        for name in ("runID", "rootID", "parentID", "trigger", "sandboxID", *times):
            told.pop(name)
        for step in told["steps"]:
            step.pop("begunAt"), step.pop("endedAt")
        seen[way] = told, events, bill
    assert all(each == seen["api"] for each in seen.values()), seen
    told, events, bill = seen["api"]
    assert [(each["kind"], each["cpu_count"]) for each in bill] == [("compute", 2)]
    assert told["result"] == {"said": "THE SAME FOR ALL"}
    assert events == ["run.start", "run.start", "run.started", "run.step", "run.emit", "run.succeed"]


def test_a_delivery_begins_one_run_however_often_it_comes(house: House) -> None:
    path, secret = hook(house)
    body = b'{"text": "once"}'
    headers = signed(secret, body, delivery="d-1")
    first = deliver(house, path, body, headers)
    assert first.status_code == 202, first.text
    later = signed(secret, body, delivery="d-1", at=time.time() + 7)
    assert deliver(house, path, body, later).json() == first.json()
    other = deliver(house, path, body, signed(secret, body, delivery="d-2"))
    assert other.json() != first.json()
    assert house.end(first.json()["runID"])["input"] == {"text": "once"}


def test_a_delivery_signed_as_github_does_is_taken(house: House) -> None:
    path, secret = hook(house)
    body = b'{"text": "pushed"}'
    signature = "sha256=" + hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()
    taken = deliver(house, path, body, {"X-Hub-Signature-256": signature, "X-GitHub-Delivery": "1"})
    again = deliver(house, path, body, {"X-Hub-Signature-256": signature, "X-GitHub-Delivery": "2"})
    assert (taken.status_code, again.json()) == (202, taken.json())


def test_what_is_not_signed_begins_nothing(house: House) -> None:
    path, secret = hook(house)
    body = b'{"text": "forged"}'
    good = signed(secret, body, delivery="x")
    wrong: list[tuple[str, bytes, dict[str, str]]] = [
        (path, body, {}),
        (path, body + b" ", good),
        (path, body, good | {"Wardian-Delivery": "y"}),
        (path, body, signed("0" * 64, body)),
        (path, body, signed(secret, body, at=time.time() - 3600)),
        (path, body, signed(secret, body, at=time.time() + 3600)),
        (path, body, {"X-Hub-Signature-256": "sha256=" + "0" * 64}),
        (path, body, {"X-Hub-Signature-256": "sha256=é"}),
        ("/hooks/tnone", body, good),
        (hook(house)[0], body, good),
    ]
    for to, what, headers in wrong:
        raw = [(name.encode(), value.encode()) for name, value in headers.items()]
        answer = httpx.post(house.server.url + to, content=what, headers=raw, trust_env=False)
        assert (answer.status_code, answer.json()["error_code"]) == (401, "bad_signature"), headers
    assert all(run["input"] != {"text": "forged"} for run in house.call("GET", "/runs").json())


def test_a_hook_that_is_removed_takes_nothing_more(house: House) -> None:
    made = house.call("POST", "/agents/echo/webhooks").json()
    assert house.call("DELETE", f"/triggers/{made['triggerID']}").status_code == 204
    body = b"{}"
    answer = deliver(house, made["path"], body, signed(made["secret"], body))
    assert answer.status_code == 401
    assert house.call("DELETE", f"/triggers/{made['triggerID']}").status_code == 404


def test_bad_schedules_are_refused(house: House) -> None:
    def refusal(**body: Any) -> tuple[int, str]:
        answer = house.call("POST", "/agents/echo/schedules", body)
        return answer.status_code, answer.json()["error_code"]

    assert refusal(cron="every day") == (400, "bad_schedule")
    assert refusal(cron="0 9 * * *", timezone="Nowhere") == (400, "bad_timezone")
    assert refusal(cron="0 9 * * *", missed="all") == (400, "bad_schedule")
    assert refusal(cron="0 9 * * *", overlap="x") == (400, "bad_schedule")
