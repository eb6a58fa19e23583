"""Drives one official SDK through a sandbox's life. Run as ``python drive.py <module>`` in its environment.

Ends with one line of JSON that names the steps that were taken; any failure is an exception.
"""

from __future__ import annotations

import importlib
import json
import sys
from typing import Any


def counter(sandbox: Any) -> int:
    return int(sandbox.files.read("count").strip() or 0)


def drive(module: str) -> list[str]:
    """The whole tour, with the module's ``Sandbox``. What a version lacks is left out of the answer."""
    sandbox_class = importlib.import_module(module).Sandbox
    steps: list[str] = []
    sandbox = sandbox_class.create(timeout=120, metadata={"sdk": f"{module} & co"}, envs={"WHO": "me"})
    steps.append("create")
    try:
        _use(sandbox, steps)
        again = _pause_and_resume(sandbox_class, sandbox, steps)
        _clone(sandbox_class, again, steps)
        _look_around(sandbox_class, again, module, steps)
        _close_the_network(again, steps)
    finally:
        killed = sandbox_class.kill(sandbox.sandbox_id)
    assert killed is True
    assert sandbox_class.kill(sandbox.sandbox_id) is False
    assert sandbox.is_running() is False
    steps.append("kill")
    return steps


def _use(sandbox: Any, steps: list[str]) -> None:
    done = sandbox.commands.run('echo "hello $WHO" && id -un && pwd')
    assert done.stdout.split("\n")[:3] == ["hello me", "user", "/home/user"], done
    heard: list[str] = []
    sandbox.commands.run("echo heard; echo shout >&2", on_stdout=heard.append)
    assert "".join(heard) == "heard\n"
    steps.append("commands")
    sandbox.files.write("notes/deep.txt", "4" + "2" * 100_000)
    assert len(sandbox.files.read("notes/deep.txt")) == 100_001
    assert [entry.name for entry in sandbox.files.list("notes")] == ["deep.txt"]
    assert sandbox.files.exists("nowhere") is False
    steps.append("files")


def _pause_and_resume(sandbox_class: Any, sandbox: Any, steps: list[str]) -> Any:
    count = "i=0; while true; do i=$((i+1)); echo $i > count.new; mv count.new count; sleep 0.05; done"
    # The first count is awaited inside, so that nothing here depends on how fast a shell starts.
    sandbox.commands.run(count, background=True)
    sandbox.commands.run("until [ -s count ]; do sleep 0.02; done")
    pause = sandbox.pause if hasattr(sandbox, "pause") else sandbox.beta_pause
    pause()
    assert sandbox.is_running() is False
    assert str(sandbox_class.get_info(sandbox.sandbox_id).state).rpartition(".")[2].lower() == "paused"
    again = sandbox_class.connect(sandbox.sandbox_id)
    before = counter(again)
    again.commands.run(f"until [ $(cat count) -gt {before + 2} ]; do sleep 0.02; done", timeout=20)
    again.set_timeout(240)
    steps.append("pause and resume")
    return again


def _clone(sandbox_class: Any, sandbox: Any, steps: list[str]) -> None:
    if hasattr(sandbox, "fork"):
        clones = sandbox.fork(count=2)
        assert len({clone.sandbox_id for clone in clones} | {sandbox.sandbox_id}) == 3
        for clone in clones:
            assert clone.commands.run("hostname").stdout.strip() == clone.sandbox_id
            assert counter(clone) > 0
            clone.files.write("mine", clone.sandbox_id)
            assert clone.kill() is True
        assert sandbox.files.exists("mine") is False
        steps.append("fork")
    snapshot = sandbox.create_snapshot()
    made = sandbox_class.create(snapshot.snapshot_id, timeout=60)
    assert len(made.files.read("notes/deep.txt")) == 100_001
    assert made.kill() is True
    delete = sandbox_class.delete_snapshot
    assert (delete(snapshot.snapshot_id), delete(snapshot.snapshot_id)) == (True, False)
    steps.append("snapshot")


def _look_around(sandbox_class: Any, sandbox: Any, module: str, steps: list[str]) -> None:
    query_class = importlib.import_module(f"{module}.sandbox.sandbox_api").SandboxQuery
    pages = sandbox_class.list(query=query_class(metadata={"sdk": f"{module} & co"}))
    assert [item.sandbox_id for item in pages.next_items()] == [sandbox.sandbox_id]
    assert pages.has_next is False
    assert isinstance(sandbox.get_metrics(), list)
    steps.append("list")


def _close_the_network(sandbox: Any, steps: list[str]) -> None:
    if not hasattr(sandbox, "update_network"):
        return
    sandbox.update_network({"allow_out": ["good.test"], "deny_out": lambda context: [context.all_traffic]})
    network = sandbox.get_info().network
    assert (network["allow_out"], network["deny_out"]) == (["good.test"], ["0.0.0.0/0"])
    curl = "curl -sS --connect-timeout 3 --max-time 10 http://1.1.1.1/ || echo closed"
    assert sandbox.commands.run(curl).stdout == "closed\n"
    sandbox.update_network({})
    assert "deny_out" not in sandbox.get_info().network
    steps.append("network")


if __name__ == "__main__":
    sys.stdout.write(json.dumps(drive(sys.argv[1])) + "\n")
