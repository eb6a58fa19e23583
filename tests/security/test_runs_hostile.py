"""What programs in runs may not do: speak for another run, forge a step, or make the host keep too much."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from e2b import Sandbox
from tests.acceptance.conftest import serve, stop
from tests.acceptance.running import House
from tests.acceptance.templates import key_of

ATTACKS = """
import http.client
def ask(method, path, body=None, token=None, raw=None):
    mine = open("/run/wardian/token").read().strip()
    connection = http.client.HTTPConnection("run.wardian.internal", timeout=10)
    headers = {"Content-Type": "application/json"}
    if token != "":
        headers["Authorization"] = "Bearer " + (mine if token is None else token)
    connection.request(method, path, raw if raw is not None else json.dumps(body), headers)
    answer = connection.getresponse()
    said = json.loads(answer.read() or b"{}")
    return [answer.status, said.get("error_code")]
mine = open("/run/wardian/token").read().strip()
head, claims, signature = mine.split(".")
out = {
    "no token": ask("GET", "/run", token=""),
    "another's token": ask("GET", "/run", token=run.input["token"]),
    "a changed token": ask("GET", "/run", token=".".join((head, claims[:-2] + "AA", signature))),
    "no signature": ask("GET", "/run", token=head + "." + claims + "."),
    "an empty key": ask("POST", "/steps", {"key": ""}),
    "a long key": ask("POST", "/steps", {"key": "x" * 256}),
    "a key that is none": ask("POST", "/steps", {"key": "a\\nb"}),
    "a commit out of nothing": ask("POST", "/steps/commit", {"key": "never begun", "result": 1}),
    "a huge result": ask("POST", "/result", {"result": "x" * (600 << 10)}),
    "a huge body": ask("POST", "/result", raw=b'"' + b"x" * (4 << 20) + b'"'),
    "no JSON": ask("POST", "/steps", raw=b"{"),
    "deep JSON": ask("POST", "/steps", raw=b'{"key":"deep","input":' + b"[" * 100000 + b"]" * 100000 + b"}"),
    "an unknown option": ask("POST", "/steps", {"key": "k", "tenant": "other"}),
    "another's run": ask("POST", "/wait", {"key": "w", "run": run.input["run"]}),
    "an agent that is not there": ask("POST", "/spawn", {"key": "s", "agent": "nobody"}),
    "a sleep of years": ask("POST", "/sleep", {"key": "z", "seconds": 1e12}),
    "no path": ask("GET", "/../../etc/passwd"),
    "the control plane": ask("GET", "/wardian/runs"),
}
begun = ask("POST", "/steps", {"key": "same", "input": 1})
out["the step of another program"] = ask("POST", "/steps", {"key": "same", "input": 2})
run.result(out)
"""

WANTED = {
    "no token": [401, "token_missing"],
    "another's token": [401, "token_of_another_sandbox"],
    "a changed token": [401, "token_forged"],
    "no signature": [401, "token_forged"],
    "an empty key": [400, "bad_step_key"],
    "a long key": [400, "bad_step_key"],
    "a key that is none": [400, "bad_step_key"],
    "a commit out of nothing": [404, "step_not_begun"],
    "a huge result": [400, "value_too_big"],
    "a huge body": [413, "request_too_large"],
    "no JSON": [400, "invalid_argument"],
    "deep JSON": [400, "invalid_argument"],
    "an unknown option": [501, "unknown_option"],
    "another's run": [404, "run_not_found"],
    "an agent that is not there": [404, "agent_not_found"],
    "a sleep of years": [400, "bad_sleep"],
    "no path": [404, "no_such_endpoint"],
    "the control plane": [404, "no_such_endpoint"],
    "the step of another program": [409, "step_changed"],
}


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """The SDK finds its server in the environment."""
    house = House(serve(tmp_path_factory.mktemp("runs")))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("E2B_API_URL", house.server.url)
        patch.setenv("E2B_SANDBOX_URL", house.server.url)
        patch.setenv("E2B_API_KEY", house.server.key)
        yield house
    house.http.close()
    stop(house.server)


def test_a_program_speaks_for_its_own_run_and_is_bounded(house: House) -> None:
    house.freeze("teller", 'run.result(open("/run/wardian/token").read())')
    other = house.begin("teller")
    token = house.end(other)["result"]
    house.freeze("attacker", ATTACKS)
    told = house.end(house.begin("attacker", {"token": token.strip(), "run": other}))
    assert told["state"] == "succeeded", told
    assert told["result"] == WANTED
    assert [step["key"] for step in told["steps"]] == ["same"]


def test_a_sandbox_that_is_no_runs_machine_finds_no_door(house: House) -> None:
    """By name there is none, and behind its address nobody."""
    sandbox = Sandbox.create(timeout=60)
    run = sandbox.commands.run
    assert run("getent hosts run.wardian.internal || echo none").stdout.strip() == "none"
    said = run("curl -sS -m 10 http://198.19.255.253/run || echo refused").stdout
    assert said.strip().endswith("refused")
    sandbox.kill()


def test_a_fork_of_a_runs_machine_is_not_the_run(house: House) -> None:
    """It has the run's memory, token included, and may say nothing in its name."""
    house.freeze("waiter", "note('up')\ntime.sleep(600)")
    run = house.begin("waiter")
    told = house.until(run, lambda told: told["state"] == "running")
    made = house.http.post(f"/sandboxes/{told['sandboxID']}/fork", json={"count": 1})
    assert made.status_code in (200, 201), made.text
    (fork,) = made.json()
    fork_id = (fork.get("sandbox") or fork)["sandboxID"]
    inside = Sandbox.connect(fork_id).commands.run
    said = inside(
        'curl -sS -m 10 -H "Authorization: Bearer $(cat /run/wardian/token)" http://198.19.255.253/run '
        "|| echo refused"
    )
    assert said.stdout.strip().endswith("refused")
    Sandbox.kill(fork_id)
    house.call("POST", f"/runs/{run}/cancel")


def test_another_tenant_sees_no_agent_run_or_trigger(house: House) -> None:
    house.freeze("private", 'run.ask("?")')
    run = house.begin("private")
    house.until(run, lambda told: told["state"] == "waiting")
    trigger = house.call("POST", "/agents/private/webhooks").json()["triggerID"]
    mine = house.http.headers["X-API-KEY"]
    house.http.headers["X-API-KEY"] = key_of(house.server, "nosy")
    try:
        for method, path, body in (
            ("GET", f"/runs/{run}", None),
            ("GET", f"/runs/{run}/events", None),
            ("POST", f"/runs/{run}/cancel", None),
            ("POST", f"/runs/{run}/retry", None),
            ("POST", f"/runs/{run}/answer", {"key": "ask", "answer": "yes"}),
            ("GET", "/agents/private", None),
            ("DELETE", "/agents/private", None),
            ("POST", "/agents/private/version", {"version": 1}),
            ("POST", "/agents/private/webhooks", None),
            ("POST", "/runs", {"agent": "private"}),
            ("DELETE", f"/triggers/{trigger}", None),
        ):
            answer = house.call(method, path, body)
            assert answer.status_code == 404, (method, path, answer.text)
        assert house.call("GET", "/runs").json() == []
        assert house.call("GET", "/agents").json() == []
        assert house.call("GET", "/triggers").json() == []
    finally:
        house.http.headers["X-API-KEY"] = mine
    assert house.call("POST", f"/runs/{run}/cancel").json()["state"] == "cancelled"
