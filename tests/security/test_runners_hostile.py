"""Environments that fight the runner: hide it, replace it, write to it, poison what it loads. And tenants
that pry."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from e2b import CommandExitException, Sandbox
from tests.acceptance.conftest import serve, stop
from tests.acceptance.releasing import python_runner, release
from tests.acceptance.running import House
from tests.acceptance.templates import key_of

pytestmark = pytest.mark.timeout(300)

PLACE = "/run/wardian/runner"
ANSWER = """
import builtins, json
return {"version": VERSION, "poisoned": getattr(builtins, "POISONED", []),
        "file": os.path.realpath(__file__), "json": json.__file__}
"""


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """The SDK finds its server in the environment."""
    house = House(serve(tmp_path_factory.mktemp("runners")))
    with pytest.MonkeyPatch.context() as patch:
        for name in ("E2B_API_URL", "E2B_SANDBOX_URL"):
            patch.setenv(name, house.server.url)
        patch.setenv("E2B_API_KEY", house.server.key)
        yield house
    house.http.close()
    stop(house.server)


@pytest.fixture
def box(house: House) -> Iterator[Sandbox]:
    box = Sandbox.create(timeout=300)
    yield box
    Sandbox.kill(box.sandbox_id)


def as_root(box: Sandbox, script: str) -> str:
    return box.commands.run(script, user="root", timeout=60).stdout


def swap(house: House, box: Sandbox, name: str) -> httpx.Response:
    return house.call("POST", f"/sandboxes/{box.sandbox_id}/runner", {"runner": name})


def run_in(house: House, agent: str, environment: str, **more: object) -> dict[str, Any]:
    body = {"environment": environment, "runner": agent, **more}
    frozen = house.call("PUT", f"/agents/{agent}", body)
    assert frozen.status_code == 200, frozen.text
    return house.end(house.begin(agent))


WRITES = """
while read -r what; do
    sh -c "$what" 2>/dev/null && echo "did: $what"
    mount -o remount,rw PLACE 2>/dev/null
done <<'END'
echo x > HERE/harness.py
echo x >> HERE/main.py
touch HERE/sitecustomize.py
rm HERE/harness.py
mkdir -p HERE/__pycache__
chmod 777 HERE/harness.py
chown user HERE
mv HERE /run/wardian/gone
ln -sfn /tmp PLACE/current
ln HERE/harness.py HERE/x
truncate -s 0 HERE/harness.py
rm PLACE/current
mknod HERE/x c 1 3
mkdir PLACE/evil
END
sha256sum HERE/harness.py PLACE/current/harness.py | cut -c1-64 | uniq
"""


def test_root_changes_nothing(house: House, box: Sandbox, tmp_path: Path) -> None:
    directory = python_runner(tmp_path, "fixed", work=ANSWER)
    released = release(house, directory, "fixed")["release"]
    here = swap(house, box, "fixed").json()["path"]
    whole = as_root(box, f"sha256sum {here}/harness.py | cut -c1-64")
    script = WRITES.replace("HERE", here).replace("PLACE", PLACE)
    assert as_root(box, script) == whole
    assert swap(house, box, "fixed").json()["release"] == released
    assert run_in(house, "fixed", "base")["result"]["version"] == "fixed"


HIDING = {
    "unmounts it": f"umount -l {PLACE}",
    "mounts something over it": f"mount -t tmpfs none {PLACE}",
    "mounts a copy over it": f"cp -rL {PLACE} /tmp/copy; echo 'evil = 1' >> /tmp/copy/*/harness.py;"
    f"mount --bind /tmp/copy {PLACE}",
    "mounts over what is above it": "mount -t tmpfs none /run/wardian",
}


COVERING = {
    "a file of it": "mount --bind /tmp/evil HERE/harness.py",
    "all of it": "cp -rL HERE /tmp/copy; cp /tmp/evil /tmp/copy/harness.py; mount --bind /tmp/copy HERE",
    "itself": "mount --bind PLACE PLACE",
}


@pytest.mark.parametrize("what", COVERING)
def test_root_who_covers_it_is_found_out(house: House, box: Sandbox, tmp_path: Path, what: str) -> None:
    release(house, python_runner(tmp_path, "one"), "covered")
    here = swap(house, box, "covered").json()["path"]
    script = COVERING[what].replace("HERE", here).replace("PLACE", PLACE)
    as_root(box, f"echo 'evil = 1' > /tmp/evil; {script}")
    refused = swap(house, box, "covered")
    assert (refused.status_code, refused.json()["error_code"]) == (409, "runner_not_seen"), refused.text


@pytest.mark.parametrize("how", HIDING)
def test_root_who_hides_it_gets_no_other(house: House, box: Sandbox, tmp_path: Path, how: str) -> None:
    release(house, python_runner(tmp_path, "one"), "hidden")
    swap(house, box, "hidden")
    as_root(box, HIDING[how])
    release(house, python_runner(tmp_path, "two"), "hidden")
    refused = swap(house, box, "hidden")
    assert refused.status_code == 409, refused.text
    assert refused.json()["error_code"] in ("runner_not_seen", "runner_invalid")
    with Sandbox.create(timeout=60) as fresh:
        assert swap(house, fresh, "hidden").json()["version"] == "two"


BLOCKER = f"mkdir -p /run/wardian && ln -s /proc/nowhere {PLACE}"  # there nothing can be mounted


def test_an_environment_that_lets_none_in_fails_its_own_runs_alone(
    house: House, box: Sandbox, tmp_path: Path
) -> None:
    """Frozen with something in the way of the mount: two machines, and then the run says why."""
    release(house, python_runner(tmp_path, "one", work=ANSWER), "fought")
    as_root(box, BLOCKER)
    frozen = box.create_snapshot().snapshot_id
    told = run_in(house, "fought", frozen)
    assert told["failure"]["code"] == "runner_does_not_start", told
    assert told["attempts"] == 2
    assert run_in(house, "fought", "base")["result"]["version"] == "one"
    shown = house.call("GET", "/runners/fought").json()
    assert (shown["current"], shown["rolledBack"]) == (shown["releases"][0]["release"], None)


POISON = """
set -e
bad='import builtins; builtins.POISONED = getattr(builtins, "POISONED", []) + [__name__]'
packages=$(python3 -c 'import sys; print([p for p in sys.path if p.endswith("-packages")][-1])')
user=/home/user/.local/lib/python3.11/site-packages
for place in $packages $user /home/user/evil /run/wardian/lib /home/user; do
    mkdir -p $place
    for name in sitecustomize usercustomize harness main lazy json; do echo "$bad" > $place/$name.py; done
    echo "$bad" > $place/evil.pth
done
# Bytecode of other code, where caches are looked for.
mkdir -p /home/user/cache/run/wardian/runner
python3 - <<'END'
import py_compile, glob, os
os.makedirs("/tmp/w", exist_ok=True)
open("/tmp/w/harness.py", "w").write("import builtins; builtins.POISONED = ['bytecode']")
py_compile.compile("/tmp/w/harness.py", "/home/user/cache/harness.pyc",
                   invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
for root in glob.glob("/run/wardian/runner/*"):
    place = "/home/user/cache" + root
    os.makedirs(place, exist_ok=True)
    for version in ("310", "311", "312", "313"):
        os.link("/home/user/cache/harness.pyc", f"{place}/harness.cpython-{version}.pyc")
END
echo 'export PYTHONPATH=/home/user/evil PYTHONSTARTUP=/home/user/evil/json.py' > /etc/profile.d/evil.sh
echo 'export PYTHONPATH=/home/user/evil' >> /home/user/.bashrc
printf '#!/bin/sh\\necho no > /home/user/shadowed\\n' > /home/user/python3; chmod +x /home/user/python3
chown -R user /home/user
"""
STEERING = {
    "PYTHONPATH": "/home/user/evil",
    "PYTHONHOME": "/home/user/evil",
    "PYTHONSTARTUP": "/home/user/evil/json.py",
    "PYTHONPYCACHEPREFIX": "/home/user/cache",
    "PYTHONINSPECT": "1",
    "LD_PRELOAD": "/home/user/evil/none.so",
    "LD_LIBRARY_PATH": "/home/user/evil",
}


def test_what_an_environment_plants_is_not_loaded(house: House, box: Sandbox, tmp_path: Path) -> None:
    """Modules that shadow, sitecustomize, .pth, user packages, variables, and bytecode."""
    released = release(house, python_runner(tmp_path, "clean", work=ANSWER), "clean")["release"]
    swap(house, box, "clean")
    as_root(box, POISON)
    # An ordinary Python in there is poisoned through and through.
    seen = box.commands.run("python3 -c 'import builtins; print(builtins.POISONED)'").stdout
    assert {"site", "usercustomize"} <= set(ast.literal_eval(seen))
    assert swap(house, box, "clean").status_code == 200
    told = run_in(house, "clean", box.create_snapshot().snapshot_id, env=STEERING)
    result = told["result"]
    assert result == {
        "version": "clean",
        "poisoned": [],
        "file": f"{PLACE}/{released[:16]}/harness.py",
        "json": result["json"],
    }, told
    assert result["json"].startswith("/usr/lib/python3")


def test_a_self_test_is_bounded_and_its_children_end_with_it(
    house: House, box: Sandbox, tmp_path: Path
) -> None:
    test = "import subprocess; subprocess.Popen(['sleep', '4242']); time.sleep(60)"
    release(house, python_runner(tmp_path, "slow", self_test=test, self_test_s=1), "slow")
    refused = swap(house, box, "slow")
    assert (refused.status_code, refused.json()["error_code"]) == (409, "runner_self_test_failed")
    with pytest.raises(CommandExitException):
        box.commands.run("pgrep -f 'sleep 424[2]'")


def test_another_tenants_runners_do_not_exist(house: House, box: Sandbox, tmp_path: Path) -> None:
    made = release(house, python_runner(tmp_path, "mine"), "mine")
    with httpx.Client(
        base_url=house.server.url, headers={"X-API-KEY": key_of(house.server, "other")}
    ) as other:
        assert other.get("/wardian/runners").json() == []
        answers = [
            other.get("/wardian/runners/mine"),
            other.get(f"/wardian/runners/{made['runner']['runnerID']}"),
            other.post("/wardian/runners/mine/current", json={"release": made["release"]}),
            other.post("/wardian/runners/mine/canary", json={"release": made["release"], "share": 5}),
            other.post(f"/wardian/sandboxes/{box.sandbox_id}/runner", json={"runner": "mine"}),
            other.put("/wardian/agents/a", json={"environment": "base", "runner": "mine"}),
        ]
        assert [answer.status_code for answer in answers] == [404] * len(answers)
        body = {"release": made["release"]}
        unknown = other.post("/wardian/runners/nobody/current", json=body).json()["message"]
        assert answers[2].json()["message"] == unknown.replace("nobody", "mine")
        # The same bytes are another release there, with a number of its own.
        theirs = House(house.server)
        theirs.http = other
        assert release(theirs, python_runner(tmp_path, "mine"), "mine")["release"] == made["release"]
    for content, status, code in (
        (b"no archive", 400, "bad_archive"),
        (bytes(33 << 20), 413, "request_too_large"),
    ):
        refused = house.http.post("/wardian/runners", params={"name": "x"}, content=content)
        assert (refused.status_code, refused.json()["error_code"]) == (status, code)
