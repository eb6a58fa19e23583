"""Runners: released at any time, put beside frozen environments, and switched as one."""

from __future__ import annotations

import json
import tarfile
import time
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from e2b import Sandbox
from tests.acceptance import commanding
from tests.acceptance.releasing import python_runner, release
from tests.acceptance.running import House
from tests.acceptance.test_triggers import set_due

pytestmark = pytest.mark.timeout(300)


def address(house: House) -> tuple[str, ...]:
    """Where the server is, as commands are told."""
    return ("--url", house.server.url, "--api-key", house.server.key)


def wardian(house: House, *words: str, fails: bool = False) -> dict[str, Any]:
    """`wardian runner WORDS`, and what it tells."""
    done = commanding.wardian("runner", *address(house), *words, "--json")
    assert (done.returncode != 0) is fails, done.stdout + done.stderr
    told: dict[str, Any] = json.loads(done.stderr if fails else done.stdout)
    return told


def freeze(house: House, name: str, environment: str = "base", **more: Any) -> None:
    body = {"environment": environment, "runner": name, **more}
    frozen = house.call("PUT", f"/agents/{name}", body)
    assert frozen.status_code == 200, frozen.text


@pytest.fixture
def box(house: House) -> Iterator[Sandbox]:
    box = Sandbox.create(timeout=300)
    yield box
    Sandbox.kill(box.sandbox_id)


def swap(house: House, sandbox: str, name: str, release: str | None = None) -> dict[str, Any]:
    done = house.call("POST", f"/sandboxes/{sandbox}/runner", {"runner": name, "release": release})
    assert done.is_success, done.text
    told: dict[str, Any] = done.json()
    return told


def test_a_run_gets_the_release_that_is_current_and_goes_back_by_a_pointer(
    house: House, tmp_path: Path
) -> None:
    first = wardian(house, "release", str(python_runner(tmp_path, "1.0")), "--name", "plain")["current"]
    house.call("PUT", "/agents/plain", {"environment": "base", "entry": "exit 3"})  # which it has no more
    freeze(house, "plain")
    told = house.end(house.begin("plain"))
    assert (told["state"], told["result"], told["failure"]) == ("succeeded", "1.0", None)
    assert told["runner"] == {"name": "plain", "release": first, "version": "1.0"}
    shown = commanding.wardian("run", *address(house), "inspect", told["runID"])
    assert f"runner plain 1.0, release {first[:16]}" in shown.stderr
    second = release(house, python_runner(tmp_path, "2.0"), "plain")["release"]
    assert house.end(house.begin("plain"))["result"] == "2.0"
    told = wardian(house, "use", "plain", first[:8])
    assert (told["current"], told["previous"]) == (first, second)
    assert house.end(house.begin("plain"))["result"] == "1.0"
    assert [each["version"] for each in told["releases"]] == ["2.0", "1.0"]
    # The same tree is the same release, whenever it is released.
    again = release(house, python_runner(tmp_path, "2.0"), "plain")
    assert (again["release"], again["runner"]["current"]) == (second, second)
    assert wardian(house, "use", "plain", "0" * 64, fails=True)["error"]["code"] == "release_not_found"


LASTING = """
import subprocess
while not os.path.exists("/home/user/go"):
    time.sleep(0.02)
import lazy
return [VERSION, lazy.VERSION, os.readlink("/run/wardian/runner/current")]
"""


def test_runs_under_way_keep_theirs_and_can_be_switched(house: House, tmp_path: Path) -> None:
    """Even what the program loads later is of the release that it began with."""
    more = {"lazy.py": "VERSION = 'lazy 1.0'"}
    release(house, python_runner(tmp_path, "1.0", work=LASTING, more=more), "lasting")
    freeze(house, "lasting")
    run, other = house.begin("lasting"), house.begin("lasting")
    for each in (run, other):
        house.until(each, lambda told: told["state"] == "running")
    more = {"lazy.py": "VERSION = 'lazy 2.0'"}
    second = release(house, python_runner(tmp_path, "2.0", work=LASTING, more=more), "lasting")["release"]
    told = house.get(run)
    assert told["runner"]["version"] == "1.0"
    switched = swap(house, told["sandboxID"], "lasting")
    assert (switched["state"], switched["release"]) == ("switched", second)
    told = house.get(run)
    assert told["runner"]["version"] == "2.0"
    assert house.happened(run, "run.runner")
    for each in (run, other):
        house.files(house.get(each)["sandboxID"])("POST", "go", files={"file": b""})
    assert house.end(run)["result"] == ["1.0", "lazy 1.0", second[:16]]
    assert house.end(other)["result"][:2] == ["1.0", "lazy 1.0"]
    assert house.end(other)["result"][2] != second[:16]


def test_forks_go_on_with_what_their_parents_had(house: House, box: Sandbox, tmp_path: Path) -> None:
    """Of sandboxes, and of runs: programs in them have it open."""
    more = {"lazy.py": "VERSION = 'lazy 1.0'"}
    first = release(house, python_runner(tmp_path, "1.0", work=LASTING, more=more), "forked")["release"]
    swap(house, box.sandbox_id, "forked")
    made = house.http.post(f"/sandboxes/{box.sandbox_id}/fork", json={"count": 1}).json()
    fork = Sandbox.connect(made[0]["sandbox"]["sandboxID"])
    assert fork.commands.run("readlink /run/wardian/runner/current").stdout.strip() == first[:16]
    second = release(house, python_runner(tmp_path, "2.0"), "forked")["release"]
    assert swap(house, fork.sandbox_id, "forked")["release"] == second
    assert box.commands.run("readlink /run/wardian/runner/current").stdout.strip() == first[:16]
    fork.kill()

    freeze(house, "forked", every=1)
    wardian(house, "use", "forked", first)
    run = house.begin("forked")
    while not house.happened(run, "run.kept"):
        time.sleep(0.05)
    other = house.call("POST", f"/runs/{run}/fork", {}).json()["runID"]
    for each in (run, other):
        told = house.until(each, lambda told: told["state"] == "running")
        house.files(told["sandboxID"])("POST", "go", files={"file": b""})
    for each in (run, other):
        ended = house.end(each)
        assert ended["result"] == ["1.0", "lazy 1.0", first[:16]], ended
        assert ended["runner"]["release"] == first


def layer(house: House, sandbox: str) -> dict[str, tuple[Any, ...]]:
    """Everything that is in the environment and not in its image, once it is at rest: by path, when it was
    changed, and all else that a file is. Leaves the sandbox resumed, from these files."""
    kept = house.server.data / "snapshots"
    before = {path.name for path in kept.iterdir()}
    assert house.http.post(f"/sandboxes/{sandbox}/pause", json={"memory": False}).status_code == 204
    (made,) = {path.name for path in kept.iterdir()} - before
    found = {}
    (archive,) = [path for path in (kept / made).iterdir() if path.name != "manifest.json"]
    with tarfile.open(archive) as tar:
        for member in tar:
            file = tar.extractfile(member) if member.isreg() else None
            digest = "" if file is None else sha256(file.read()).hexdigest()
            found[member.name] = (member.mtime, member.type, member.mode, member.uid, member.linkname, digest)
    assert house.http.post(f"/sandboxes/{sandbox}/connect", json={"timeout": 300}).status_code < 300
    return found


def test_nothing_of_the_environment_is_touched(house: House, box: Sandbox, tmp_path: Path) -> None:
    first = release(house, python_runner(tmp_path, "1.0"), "beside")["release"]
    second = release(house, python_runner(tmp_path, "2.0"), "beside")["release"]
    sandbox = box.sandbox_id
    box.files.write("mine/notes", "the user's own")
    before = layer(house, sandbox)
    assert before["home/user/mine/notes"]
    for wanted in (first, second, first):
        assert swap(house, sandbox, "beside", wanted)["state"] == "switched"
        pointer = box.commands.run(
            "readlink /run/wardian/runner/current; cat /run/wardian/runner/current/harness.py"
        )
        assert pointer.stdout.startswith(wanted[:16])
        assert repr("1.0" if wanted == first else "2.0") in pointer.stdout
    after = layer(house, sandbox)
    assert {path: each[1:] for path, each in after.items()} == {
        path: each[1:] for path, each in before.items()
    }
    # Every boot writes its name and number anew, the same.
    assert {path.split("/")[0] for path in after if after[path] != before[path]} <= {".", "etc"}
    # It came up again with that: the release stands there, and still is no part of it.
    assert swap(house, sandbox, "beside", second)["path"] == f"/run/wardian/runner/{second[:16]}"


def happened(house: House, sandbox: str, kind: str) -> list[dict[str, Any]]:
    told = house.http.get(f"/v2/sandboxes/{sandbox}/logs").json()["logs"]
    return [each["fields"] for each in told if each["fields"]["event"] == kind]


def test_a_paused_sandbox_gets_it_when_it_is_resumed(house: House, box: Sandbox, tmp_path: Path) -> None:
    """And one that does not work leaves what was there."""
    first = release(house, python_runner(tmp_path, "1.0"), "sleeper")["release"]
    sandbox = box.sandbox_id
    swap(house, sandbox, "sleeper")
    second = release(house, python_runner(tmp_path, "2.0"), "sleeper")["release"]
    broken = release(house, python_runner(tmp_path, "3.0", self_test="sys.exit('no')"), "sleeper")["release"]
    for wanted, event, stands in ((second, "runner.switched", second), (broken, "runner.failed", second)):
        many = len(happened(house, sandbox, event))
        box.pause()
        told = swap(house, sandbox, "sleeper", wanted)
        assert (told["state"], told["release"]) == ("at_resume", wanted)
        box = Sandbox.connect(sandbox)
        while len(happened(house, sandbox, event)) == many:
            time.sleep(0.05)  # the API has no call that waits
        assert box.commands.run("readlink /run/wardian/runner/current").stdout.strip() == stands[:16]
    (failed,) = happened(house, sandbox, "runner.failed")
    assert (failed["code"], "no" in failed["why"]) == ("runner_self_test_failed", True)
    assert first != second
    refused = house.call("POST", f"/sandboxes/{sandbox}/runner", {"release": broken})
    assert (refused.status_code, refused.json()["error_code"]) == (409, "runner_self_test_failed")
    assert box.commands.run("readlink /run/wardian/runner/current").stdout.strip() == second[:16]


BROKEN: dict[str, tuple[dict[str, Any], str, str]] = {
    "does not compile": ({"more": {"other.py": "def"}}, "runner_invalid", "SyntaxError"),
    "does not import": (
        {"more": {"harness.py": "import nothing_of_that_name"}},
        "runner_invalid",
        "ModuleNotFound",
    ),
    "fails its self-test": (
        {"self_test": "raise AssertionError('not well')"},
        "runner_self_test_failed",
        "not well",
    ),
    "never ends": (
        {"self_test": "time.sleep(100)", "self_test_s": 1},
        "runner_self_test_failed",
        "within its time",
    ),
    "says too much": ({"self_test": "print('x' * 100000)"}, "runner_self_test_failed", "64 KiB"),
}


def test_what_does_not_work_is_not_switched_to(house: House, box: Sandbox, tmp_path: Path) -> None:
    good = release(house, python_runner(tmp_path, "good"), "broken")["release"]
    swap(house, box.sandbox_id, "broken")
    for number, (given, code, words) in enumerate(BROKEN.values()):
        bad = release(house, python_runner(tmp_path, f"bad-{number}", **given), "broken")["release"]
        refused = house.call("POST", f"/sandboxes/{box.sandbox_id}/runner", {"release": bad}).json()
        assert (refused["error_code"], words in refused["message"]) == (code, True), refused
        seen = box.commands.run("ls /run/wardian/runner").stdout.split()
        assert sorted(seen) == sorted(["challenge", "current", good[:16]])
        assert box.commands.run("readlink /run/wardian/runner/current").stdout.strip() == good[:16]
    # The machine of a run is another matter: it goes, and so does the next one; then the run says why.
    freeze(house, "broken")
    told = house.end(house.begin("broken"))
    assert (told["state"], told["failure"]["code"], told["attempts"]) == (
        "failed",
        "runner_does_not_start",
        2,
    )
    assert "64 KiB" in told["failure"]["message"]
    assert "wardian runner use" in told["failure"]["message"]
    assert house.state_of(told["sandboxID"]) == "gone"
    # With one that works, it is done.
    wardian(house, "use", "broken", good)
    house.call("POST", f"/runs/{told['runID']}/retry")
    assert house.end(told["runID"])["result"] == "good"


def test_a_canary_that_fails_is_rolled_back(house: House, tmp_path: Path) -> None:
    good = release(house, python_runner(tmp_path, "good"), "canary")["release"]
    freeze(house, "canary")
    bad = release(house, python_runner(tmp_path, "bad", self_test="sys.exit('ill')"), "canary", canary=100)
    assert (bad["runner"]["canary"], bad["runner"]["share"]) == (bad["release"], 100)
    run = house.begin("canary")
    told = house.end(run)
    assert (told["result"], told["runner"]["release"]) == ("good", good)
    assert told["attempts"] == 3  # twice with the canary, once with the one that is good
    assert house.happened(run, "run.runner_rolled_back")
    now = house.call("GET", "/runners/canary").json()
    assert (now["canary"], now["share"], now["current"]) == (None, 0, good)
    assert (now["rolledBack"]["release"], now["rolledBack"]["run"]) == (bad["release"], run)
    better = release(house, python_runner(tmp_path, "better"), "canary", canary=100)["release"]
    assert house.end(house.begin("canary"))["result"] == "better"
    # Where nothing works, the environment is to blame, and the canary stays.
    freeze(house, "canary", env={"PATH": "/nowhere"})
    told = house.end(house.begin("canary"))
    assert told["failure"]["code"] == "runner_does_not_start"
    assert house.call("GET", "/runners/canary").json()["canary"] == better


def test_a_deploy_at_five_to_nine_changes_the_runner_and_nothing_else(
    house: House, box: Sandbox, tmp_path: Path
) -> None:
    """The schedule's run at nine gets the environment as it was frozen, with the runner of today."""
    box.files.write("/home/user/kept", "what the user froze")
    frozen = house.http.post(f"/sandboxes/{box.sandbox_id}/snapshots", json={}).json()["snapshotID"]
    box.files.write("/home/user/kept", "what came later")
    work = 'return [VERSION, open("/home/user/kept").read()]'
    release(house, python_runner(tmp_path, "yesterday", work=work), "nightly")
    freeze(house, "nightly", frozen)
    body = {"cron": "0 9 * * *", "input": None}
    trigger = house.call("POST", "/agents/nightly/schedules", body).json()["triggerID"]
    release(house, python_runner(tmp_path, "today", work=work), "nightly")  # 8:55
    set_due(house, trigger, int(time.time() * 1e6))
    other = house.call("POST", "/agents/nightly/schedules", body).json()["triggerID"]  # the clock looks again
    while not (found := house.call("GET", "/runs?agent=nightly").json()):
        time.sleep(0.05)
    for each in (trigger, other):
        house.call("DELETE", f"/triggers/{each}")
    told = house.end(found[0]["runID"])
    assert (told["trigger"]["kind"], told["result"]) == ("schedule", ["today", "what the user froze"])
    assert house.call("GET", "/agents/nightly").json()["versions"][0]["environment"] == frozen
