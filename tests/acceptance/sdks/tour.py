"""Drives one official Python SDK through everything it can do. Run in its environment: ``tour.py <module>``.

Ends with one line of JSON: for each step ``ok``, or ``lacks`` where this release has no such call. Any
failure is an exception. Each step is one function; what it needs of the SDK is said by :func:`step`.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

OK, LACKS = "ok", "lacks"


@dataclass
class Tour:
    """One SDK (``module``, its ``Sandbox`` class) and the sandbox that its steps are taken in."""

    module: Any
    sandbox: Any

    @property
    def cls(self) -> Any:
        return self.module.Sandbox

    def part(self, path: str) -> Any:
        """A class of the SDK's inner modules, such as ``sandbox.sandbox_api.SandboxQuery``."""
        where, _, name = path.rpartition(".")
        return getattr(importlib.import_module(f"{self.module.__name__}.{where}"), name)


Step = Callable[[Tour], None]
STEPS: list[tuple[str, str, Step]] = []


def step(name: str, needs: str = "sandbox") -> Callable[[Step], Step]:
    """Register a step. ``needs`` is a dotted path from the tour that must exist: ``cls.fork``."""

    def register(function: Step) -> Step:
        STEPS.append((name, needs, function))
        return function

    return register


def has(thing: Any, path: str) -> bool:
    for name in path.split("."):
        if not hasattr(thing, name):
            return False
        thing = getattr(thing, name)
    return True


@step("commands")
def commands(tour: Tour) -> None:
    run = tour.sandbox.commands.run
    done = run('echo "hello $WHO" && id -un && pwd')
    assert done.stdout.split("\n")[:3] == ["hello me", "user", "/home/user"], done
    heard: list[str] = []
    run("echo heard; echo shout >&2", on_stdout=heard.append)
    assert "".join(heard) == "heard\n"
    assert run("whoami", user="root").stdout == "root\n"
    assert run("echo $ONCE", envs={"ONCE": "1"}).stdout == "1\n"
    assert run("echo $ONCE").stdout == "\n"
    try:
        code = run("exit 3").exit_code
    except tour.part("sandbox.commands.command_handle.CommandExitException") as failure:
        code = failure.exit_code
    assert code == 3


@step("input", needs="sandbox.commands.send_stdin")
def input_(tour: Tour) -> None:
    run = tour.sandbox.commands.run
    try:
        handle = run("head -c 3", background=True, stdin=True)
    except TypeError:  # releases before this option always open it
        handle = run("head -c 3", background=True)
    tour.sandbox.commands.send_stdin(handle.pid, "abc")
    assert handle.wait().stdout == "abc"


@step("processes")
def processes(tour: Tour) -> None:
    handle = tour.sandbox.commands.run("sleep 600", background=True)
    assert handle.pid in [each.pid for each in tour.sandbox.commands.list()]
    again = tour.sandbox.commands.connect(handle.pid)
    assert again.pid == handle.pid
    assert tour.sandbox.commands.kill(handle.pid) is True
    assert tour.sandbox.commands.kill(handle.pid) is False


@step("timeouts")
def timeouts(tour: Tour) -> None:
    try:
        tour.sandbox.commands.run("sleep 60", timeout=1)
    except tour.part("exceptions.TimeoutException"):
        return
    raise AssertionError("a command must end at its timeout")


@step("terminal")
def terminal(tour: Tour) -> None:
    size = tour.part("sandbox.commands.command_handle.PtySize")
    pty = tour.sandbox.pty
    handle = pty.create(size(rows=24, cols=80))
    pty.resize(handle.pid, size(rows=30, cols=100))
    pty.send_stdin(handle.pid, b"echo $(tput cols)x$(tput lines); exit\n")
    heard: list[bytes] = []
    handle.wait(on_pty=heard.append)
    assert b"100x30" in b"".join(heard)


@step("files")
def files(tour: Tour) -> None:
    here = tour.sandbox.files
    here.write("notes/deep.txt", "4" + "2" * 100_000)
    assert len(here.read("notes/deep.txt")) == 100_001
    assert bytes(here.read("notes/deep.txt", format="bytes")[:2]) == b"42"
    assert b"".join(here.read("notes/deep.txt", format="stream"))[:2] == b"42"
    assert [entry.name for entry in here.list("notes")] == ["deep.txt"]
    assert here.exists("nowhere") is False
    assert here.make_dir("made") is True
    assert here.make_dir("made") is False
    here.rename("notes/deep.txt", "made/moved.txt")
    assert here.exists("notes/deep.txt") is False
    here.rename("made/moved.txt", "notes/deep.txt")
    here.remove("made")
    try:
        here.read("nowhere")
    except tour.part("exceptions.NotFoundException"):
        return
    raise AssertionError("a missing file must not be found")


@step("file facts", needs="sandbox.files.get_info")
def file_facts(tour: Tour) -> None:
    info = tour.sandbox.files.get_info("notes/deep.txt")
    assert (info.size, info.mode, info.permissions, info.owner) == (100_001, 0o644, "-rw-r--r--", "user")


@step("many files", needs="sandbox.files.write_files")
def many_files(tour: Tour) -> None:
    entry = tour.part("sandbox.filesystem.filesystem.WriteEntry")
    written = tour.sandbox.files.write_files([entry(path=f"many/{n}", data=str(n)) for n in range(10)])
    assert [each.path for each in written] == [f"/home/user/many/{n}" for n in range(10)]
    assert tour.sandbox.files.write_files([]) == []


@step("file metadata", needs="module.sandbox.filesystem.filesystem.validate_metadata")
def file_metadata(tour: Tour) -> None:
    tour.sandbox.files.write("labelled", "x", metadata={"made-by": "tour"})
    assert tour.sandbox.files.get_info("labelled").metadata == {"made-by": "tour"}
    tour.sandbox.files.write("labelled", "y")
    assert tour.sandbox.files.get_info("labelled").metadata is None


@step("watch")
def watch(tour: Tour) -> None:
    tour.sandbox.files.make_dir("watched")
    handle = tour.sandbox.files.watch_dir("watched")
    tour.sandbox.files.write("watched/new.txt", "1")
    assert "new.txt" in [event.name for event in handle.get_new_events()]
    handle.stop()


@step("signed URLs", needs="sandbox.download_url")
def signed_urls(tour: Tour) -> None:
    assert "path=notes" in tour.sandbox.download_url("notes/deep.txt")


@step("git", needs="sandbox.git")
def git(tour: Tour) -> None:
    here = tour.sandbox.git
    here.init("/home/user/repo", initial_branch="main")
    here.configure_user("Ada", "ada@example.org", scope="local", path="/home/user/repo")
    tour.sandbox.files.write("repo/a.txt", "1")
    here.add("/home/user/repo")
    here.commit("/home/user/repo", "first")
    status = here.status("/home/user/repo")
    assert (status.current_branch, status.is_clean) == ("main", True), status
    tour.sandbox.commands.run("git init -q --bare /home/user/remote.git")
    here.remote_add("/home/user/repo", "origin", "file:///home/user/remote.git")
    here.push("/home/user/repo", remote="origin", branch="main")
    here.clone("file:///home/user/remote.git", path="/home/user/clone", branch="main")
    assert tour.sandbox.files.read("clone/a.txt") == "1"


@step("pause and resume")
def pause_and_resume(tour: Tour) -> None:
    sandbox = tour.sandbox
    count = "i=0; while true; do i=$((i+1)); echo $i > count.new; mv count.new count; sleep 0.05; done"
    # The first count is awaited inside, so that nothing here depends on how fast a shell starts.
    counting = sandbox.commands.run(count, background=True)
    sandbox.commands.run("until [ -s count ]; do sleep 0.02; done")
    boot = sandbox.files.read("/proc/sys/kernel/random/boot_id")
    pause = sandbox.pause if hasattr(sandbox, "pause") else sandbox.beta_pause
    pause()
    assert sandbox.is_running() is False
    assert str(tour.cls.get_info(sandbox.sandbox_id).state).rpartition(".")[2].lower() == "paused"
    tour.sandbox = again = tour.cls.connect(sandbox.sandbox_id)
    before = int(again.files.read("count"))
    again.commands.run(f"until [ $(cat count) -gt {before + 2} ]; do sleep 0.02; done", timeout=20)
    assert again.files.read("/proc/sys/kernel/random/boot_id") == boot
    again.set_timeout(240)
    assert again.commands.kill(counting.pid) is True


@step("fork", needs="cls.fork")
def fork(tour: Tour) -> None:
    clones = tour.sandbox.fork(count=2)
    assert len({clone.sandbox_id for clone in clones} | {tour.sandbox.sandbox_id}) == 3
    for clone in clones:
        assert clone.commands.run("hostname").stdout.strip() == clone.sandbox_id
        clone.files.write("mine", clone.sandbox_id)
        assert clone.kill() is True
    assert tour.sandbox.files.exists("mine") is False


@step("snapshot", needs="cls.create_snapshot")
def snapshot(tour: Tour) -> None:
    taken = tour.sandbox.create_snapshot()
    made = tour.cls.create(taken.snapshot_id, timeout=60)
    assert len(made.files.read("notes/deep.txt")) == 100_001
    assert made.kill() is True
    delete = tour.cls.delete_snapshot
    assert (delete(taken.snapshot_id), delete(taken.snapshot_id)) == (True, False)


@step("list")
def list_(tour: Tour) -> None:
    query = tour.part("sandbox.sandbox_api.SandboxQuery")
    pages = tour.cls.list(query=query(metadata={"sdk": label(tour.module)}))
    assert [item.sandbox_id for item in pages.next_items()] == [tour.sandbox.sandbox_id]
    assert pages.has_next is False


@step("metrics", needs="sandbox.get_metrics")
def metrics(tour: Tour) -> None:
    assert isinstance(tour.sandbox.get_metrics(), list)


@step("ports")
def ports(tour: Tour) -> None:
    assert tour.sandbox.get_host(8080).startswith(f"8080-{tour.sandbox.sandbox_id}.")


@step("no internet")
def no_internet(tour: Tour) -> None:
    closed = tour.cls.create(timeout=60, allow_internet_access=False)
    try:
        done = closed.commands.run("curl --silent --max-time 5 http://1.1.1.1/ || echo shut")
        assert done.stdout == "shut\n"
    finally:
        assert closed.kill() is True


@step("network rules", needs="sandbox.update_network")
def network_rules(tour: Tour) -> None:
    sandbox = tour.sandbox
    sandbox.update_network({"allow_out": ["good.test"], "deny_out": ["0.0.0.0/0"]})
    shown = sandbox.commands.run("curl -sS --connect-timeout 3 --max-time 10 http://1.1.1.1/ || echo closed")
    assert shown.stdout == "closed\n"
    sandbox.update_network({})


@step("MCP failure is told", needs="sandbox.get_mcp_token")
def mcp_failure_is_told(tour: Tour) -> None:
    mark = {"sdk": label(tour.module) + " mcp"}
    said = ""
    try:
        tour.cls.create("base", timeout=60, metadata=mark, mcp={"exa": {"apiKey": "none"}})
    except Exception as error:
        said = str(error)
    assert "mcp" in said.lower(), said
    query = tour.part("sandbox.sandbox_api.SandboxQuery")
    for left in tour.cls.list(query=query(metadata=mark)).next_items():  # by releases before 2.38
        tour.cls.kill(left.sandbox_id)


def label(module: Any) -> str:
    return f"{module.__name__} & co"


def drive(module_name: str) -> dict[str, str]:
    """The whole tour, with the module's ``Sandbox``: ``create`` first and ``kill`` last."""
    module = importlib.import_module(module_name)
    sandbox = module.Sandbox.create(timeout=120, metadata={"sdk": label(module)}, envs={"WHO": "me"})
    tour = Tour(module, sandbox)
    outcome = {"create": OK}
    try:
        for name, needs, function in STEPS:
            outcome[name] = LACKS
            if has(tour, needs):
                function(tour)
                outcome[name] = OK
    except BaseException:
        sys.stderr.write(f"at the step {name!r}, after {outcome}\n")
        raise
    finally:
        killed = module.Sandbox.kill(sandbox.sandbox_id)
    assert killed is True
    assert module.Sandbox.kill(sandbox.sandbox_id) is False
    assert sandbox.is_running() is False
    return outcome | {"kill": OK}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(drive(sys.argv[1])) + "\n")
