"""Pauses that keep the files alone, and reboots, as the official SDK asks for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import httpx
import pytest
from e2b import CommandExitException, Sandbox, SandboxException
from tests.acceptance.conftest import Server

Make = Callable[..., Sandbox]


@pytest.fixture
def http(server: Server) -> Iterator[httpx.Client]:
    """Plain HTTP with the server's key."""
    with httpx.Client(base_url=server.url, headers={"X-API-KEY": server.key}, timeout=30) as client:
        yield client


BOOT_ID = "cat /proc/sys/kernel/random/boot_id"


def boot_id(sandbox: Sandbox) -> str:
    return sandbox.commands.run(BOOT_ID).stdout


def furnish(sandbox: Sandbox) -> str:
    """Files, a deletion and a process; the boot id of now."""
    sandbox.files.write("/home/user/kept.txt", "kept")
    sandbox.files.write("/tmp/also", "kept too")
    sandbox.commands.run("sudo rm /etc/debian_version")
    sandbox.commands.run("sleep 1000", background=True)
    return boot_id(sandbox)


def check_rebooted(sandbox: Sandbox, before: str) -> None:
    assert boot_id(sandbox) != before
    assert sandbox.files.read("/home/user/kept.txt") == "kept"
    assert sandbox.files.read("/tmp/also") == "kept too"
    assert not sandbox.files.exists("/etc/debian_version")
    with pytest.raises(CommandExitException):
        sandbox.commands.run("pgrep -x sleep")
    assert (
        sandbox.commands.run("cat /run/e2b/.E2B_SANDBOX_ID; hostname").stdout.split()
        == [
            f"{sandbox.sandbox_id}",
            f"{sandbox.sandbox_id}",
        ]
        or sandbox.commands.run("hostname").stdout.strip() == sandbox.sandbox_id
    )


def test_a_pause_of_the_files_ends_in_a_boot(own_sandbox: Make, http: httpx.Client) -> None:
    made = own_sandbox(envs={"MINE": "still"})
    before, token = furnish(made), made._envd_access_token
    assert made.pause(mode="filesystem") is True
    told = http.get(f"/sandboxes/{made.sandbox_id}").json()
    assert (told["state"], told["pauseMode"]) == ("paused", "filesystem")
    back = made.connect()
    check_rebooted(back, before)
    assert back._envd_access_token == token
    assert back.commands.run("echo $MINE").stdout == "still\n"
    # And a full pause afterwards keeps everything.
    process = back.commands.run("sleep 1000", background=True)
    now = boot_id(back)
    back.pause()
    again = back.connect()
    assert boot_id(again) == now
    assert again.commands.run("pgrep -x sleep").stdout.split() == [str(process.pid)]


def test_a_reboot_from_a_full_pause(own_sandbox: Make) -> None:
    made = own_sandbox()
    before = furnish(made)
    made.pause()
    check_rebooted(made.connect(on_resume="reboot"), before)


def test_time_up_may_keep_the_files_alone(own_sandbox: Make, http: httpx.Client) -> None:
    lifecycle = {"on_timeout": {"action": "pause", "mode": "filesystem"}}
    made = own_sandbox(timeout=100, lifecycle=lifecycle)
    before = furnish(made)
    made.set_timeout(0)
    path = f"/sandboxes/{made.sandbox_id}"
    while (told := http.get(path).json())["state"] != "paused":
        pass
    assert told["pauseMode"] == "filesystem"
    with pytest.raises(SandboxException):
        made.commands.run("true")  # traffic does not boot it
    check_rebooted(made.connect(), before)
    body = {
        "templateID": "base",
        "autoPause": True,
        "autoPauseMemory": False,
        "autoResume": {"enabled": True},
    }
    assert http.post("/v2/sandboxes", json=body).status_code == 400


def test_a_snapshot_of_the_files_is_a_template(own_sandbox: Make, http: httpx.Client) -> None:
    made = own_sandbox()
    before = furnish(made)
    answer = http.post(f"/sandboxes/{made.sandbox_id}/snapshots", json={"memory": False})
    assert answer.status_code == 201
    assert boot_id(made) == before  # it goes on
    assert made.commands.run("pgrep -x sleep").stdout
    snapshot = answer.json()["snapshotID"]
    clone = own_sandbox(template=snapshot)
    check_rebooted(clone, before)
    clone.kill()
    assert http.delete(f"/templates/{snapshot}").status_code == 204
