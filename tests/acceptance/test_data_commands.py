"""Commands and terminals, through the official SDK, as its own tests expect them."""

from __future__ import annotations

import asyncio
import base64
import json
import struct
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest
from e2b import (
    AsyncSandbox,
    AuthenticationException,
    CommandExitException,
    InvalidArgumentException,
    NotFoundException,
    Sandbox,
    SandboxState,
    TimeoutException,
)
from e2b.sandbox.commands.command_handle import PtySize

Done = Callable[[Any], Awaitable[Any]]

ECHO_MESSAGE = "Hello, World!"
LIFETIME_S = 3600


def first_output(handle: Any) -> str:
    """What a background command says first."""
    first: str = next(stdout for stdout, _, _ in handle if stdout)
    return first


class Ear:
    """Hears what a background command says first, through either face of the SDK.

    The command is run with ``follow`` among its options.
    """

    def __init__(self, sandbox: Any) -> None:
        self._told: asyncio.Queue[str] = asyncio.Queue()
        self.follow = {} if isinstance(sandbox, Sandbox) else {"on_stdout": self._told.put_nowait}

    async def first(self, handle: Any) -> str:
        return await self._told.get() if self.follow else first_output(handle)


@pytest.mark.parametrize("text", ["test", "!@#$%^&*()_+", "it's", "ünïcödé", "a\\nb", "'`$HOME`'"])
async def test_a_command_is_one_argument_whatever_is_in_it(sandbox: Any, done: Done, text: str) -> None:
    quoted = text.replace("'", "'\\''")
    result = await done(sandbox.commands.run(f"printf '%s\\n' '{quoted}'"))
    assert (result.stdout, result.stderr, result.exit_code) == (text + "\n", "", 0)


async def test_multiline_commands_and_both_outputs(sandbox: Any, done: Done) -> None:
    result = await done(sandbox.commands.run("echo one\necho two >&2\necho three"))
    assert (result.stdout, result.stderr) == ("one\nthree\n", "two\n")


async def test_output_may_be_cut_inside_a_character(sandbox: Any, done: Done) -> None:
    command = "python3 -c \"import sys; sys.stdout.buffer.write(b'a' * 8191 + b'\\xe2' + b'b')\""
    result = await done(sandbox.commands.run(command))
    assert result.stdout == "a" * 8191 + "\ufffd" + "b"


async def test_a_lot_of_output_arrives_whole(sandbox: Any, done: Done) -> None:
    result = await done(sandbox.commands.run("head -c 4000000 /dev/zero | tr '\\0' x"))
    assert len(result.stdout) == 4_000_000


async def test_a_failing_command_says_how(sandbox: Any, done: Done) -> None:
    with pytest.raises(CommandExitException) as caught:
        await done(sandbox.commands.run("echo no >&2; exit 3"))
    assert (caught.value.exit_code, caught.value.stderr) == (3, "no\n")
    assert caught.value.error == "exit status 3"


def started(envd: httpx.Client, script: str, **more: Any) -> list[dict[str, Any]]:
    """Every event of a command, as they are on the wire."""
    body = json.dumps({"process": {"cmd": "/bin/bash", "args": ["-l", "-c", script]}, **more}).encode()
    answer = envd.post(
        "/process.Process/Start",
        content=struct.pack(">BI", 0, len(body)) + body,
        headers={"Content-Type": "application/connect+json", "Connect-Protocol-Version": "1"},
    )
    messages, rest = [], answer.content
    while rest:
        flags, size = struct.unpack(">BI", rest[:5])
        messages.append((flags, json.loads(rest[5 : 5 + size])))
        rest = rest[5 + size :]
    assert messages.pop() == (2, {}), "the frame that ends a stream"
    return [message["event"] for _, message in messages]


def test_the_events_of_a_command_on_the_wire(envd: httpx.Client) -> None:
    """First the start, last the end: how it ended in Go's words, and no fields that say nothing."""
    first, data, last = started(envd, "echo out")
    assert list(first) == ["start"]
    assert base64.b64decode(data["data"]["stdout"]) == b"out\n"
    assert last == {"end": {"status": "exit status 0", "exited": True}}
    _, last = started(envd, "exit 3")
    wrong = {"exitCode": 3, "status": "exit status 3", "error": "exit status 3", "exited": True}
    assert last == {"end": wrong}
    _, last = started(envd, "kill -9 $$")
    assert last == {"end": {"exitCode": -1, "status": "signal: killed", "error": "signal: killed"}}


def test_a_command_that_says_nothing_of_stdin_has_one(envd: httpx.Client, shared: Sandbox) -> None:
    """``stdin`` absent means true: SDKs before the flag send input without having asked for it."""
    kind = "until read -t 0 || [ -p /dev/stdin ]; do :; done; [ -p /dev/stdin ] && echo pipe"
    data = started(envd, kind)[1]["data"]
    assert base64.b64decode(data["stdout"]) == b"pipe\n"
    data = started(envd, "readlink /proc/self/fd/0", stdin=False)[1]["data"]
    assert base64.b64decode(data["stdout"]) == b"/dev/null\n"


async def test_stdin_is_given_and_closed(sandbox: Any, done: Done) -> None:
    ear = Ear(sandbox)
    handle = await done(sandbox.commands.run("cat", background=True, stdin=True, **ear.follow))
    await done(sandbox.commands.send_stdin(handle.pid, ECHO_MESSAGE))
    assert await ear.first(handle) == ECHO_MESSAGE
    await done(sandbox.commands.send_stdin(handle.pid, ""))
    await done(sandbox.commands.close_stdin(handle.pid))
    result = await done(handle.wait())
    assert (result.exit_code, result.stdout) == (0, ECHO_MESSAGE)


async def test_without_stdin_a_command_reads_its_end(sandbox: Any, done: Done) -> None:
    assert (await done(sandbox.commands.run("cat; echo over"))).stdout == "over\n"


async def test_input_streams_in_order(sandbox: Any, done: Done) -> None:
    handle = await done(sandbox.commands.run("cat", background=True, stdin=True))
    lines = [f"{number}\n" for number in range(200)]
    if isinstance(sandbox, Sandbox):
        sandbox.commands.stream_input(handle.pid, lines)
    else:
        writer = sandbox.commands.stream_input(handle.pid)
        for line in lines:
            await writer.send(line)
        await writer.close()
    await done(sandbox.commands.close_stdin(handle.pid))
    assert (await done(handle.wait())).stdout == "".join(lines)


async def test_a_timeout_ends_the_process(sandbox: Any, done: Done, room: str) -> None:
    with pytest.raises(TimeoutException):
        await done(sandbox.commands.run(f"echo $$ > {room}/pid; exec sleep 100", timeout=0.7))
    with pytest.raises(CommandExitException):
        # The shell that looks can only start after the deadline's SIGKILL was sent down the same link.
        await done(sandbox.commands.run(f"kill -0 $(cat {room}/pid)"))


async def test_no_timeout_is_no_limit(sandbox: Any, done: Done) -> None:
    assert (await done(sandbox.commands.run("sleep 0.1; echo slept", timeout=0))).stdout == "slept\n"


async def test_a_process_outlives_its_connection(sandbox: Any, done: Done) -> None:
    ear, script = Ear(sandbox), "echo early; read line; echo got $line"
    handle = await done(sandbox.commands.run(script, background=True, stdin=True, **ear.follow))
    assert await ear.first(handle) == "early\n"
    await done(handle.disconnect())
    again = await done(sandbox.commands.connect(handle.pid))
    await done(sandbox.commands.send_stdin(handle.pid, "it\n"))
    assert (await done(again.wait())).stdout == "got it\n", "what was said before is not said again"


async def test_the_end_of_a_process_is_told_to_who_comes_late(sandbox: Any, done: Done) -> None:
    """How a process exited is kept for a while, for a Connect that comes after it; it is not listed."""
    handle = await done(sandbox.commands.run("exit 3", background=True))
    for _ in range(2):
        with pytest.raises(CommandExitException) as caught:
            await done(handle.wait())
        assert caught.value.exit_code == 3
        assert handle.pid not in [process.pid for process in await done(sandbox.commands.list())]
        handle = await done(sandbox.commands.connect(handle.pid))


async def test_unknown_processes_are_not_found(sandbox: Any, done: Done) -> None:
    with pytest.raises(NotFoundException, match="process with pid 999999 not found"):
        await done(sandbox.commands.connect(999999))
    with pytest.raises(NotFoundException):
        await done(sandbox.commands.send_stdin(999999, "x"))
    assert await done(sandbox.commands.kill(999999)) is False


async def test_a_killed_process_is_gone_at_once(sandbox: Any, done: Done) -> None:
    handle = await done(sandbox.commands.run("sleep 100", background=True))
    assert handle.pid in [process.pid for process in await done(sandbox.commands.list())]
    assert await done(sandbox.commands.kill(handle.pid)) is True
    with pytest.raises(CommandExitException):
        await done(sandbox.commands.run(f"kill -0 {handle.pid}"))
    assert await done(sandbox.commands.kill(handle.pid)) is False
    assert handle.pid not in [process.pid for process in await done(sandbox.commands.list())]
    with pytest.raises(CommandExitException) as caught:
        await done(handle.wait())
    assert (caught.value.exit_code, caught.value.error) == (-1, "signal: killed")


async def test_a_signal_is_for_the_process_alone(sandbox: Any, done: Done) -> None:
    """Its children live on; and its end is not held up by those that have its output open."""
    ear = Ear(sandbox)
    script = "sleep 100 & echo $$ $! $(cat /proc/$$/oom_score_adj) $(nice); wait"
    handle = await done(sandbox.commands.run(script, background=True, **ear.follow))
    pid, child, *rank = (await ear.first(handle)).split()
    assert (int(pid), rank) == (handle.pid, ["100", "0"]), "pids are the sandbox's own; rank as any program's"
    assert await done(handle.kill()) is True
    with pytest.raises(CommandExitException):
        await done(handle.wait())
    assert (await done(sandbox.commands.run(f"kill {child} && echo lived"))).stdout == "lived\n"


def test_output_comes_in_bounded_pieces(shared: Sandbox) -> None:
    """32 KiB of a command's output at most in one message, 16 KiB of a terminal's."""
    handle = shared.commands.run("head -c 300000 /dev/zero | tr '\\0' x", background=True)
    sizes = [len(stdout) for stdout, _, _ in handle if stdout]
    assert (sum(sizes), max(sizes) <= 32 * 1024) == (300_000, True)
    handle = shared.pty.create(PtySize(rows=24, cols=80))
    shared.pty.send_stdin(handle.pid, b"head -c 300000 /dev/zero | tr '\\0' x; exit\n")
    assert max(len(data) for _, _, data in handle if data) <= 16 * 1024


async def test_the_list_tells_what_runs(sandbox: Any, done: Done, room: str) -> None:
    handle = await done(
        sandbox.commands.run("sleep 100", background=True, envs={"A": "b"}, cwd=room, user="root")
    )
    (process,) = [each for each in await done(sandbox.commands.list()) if each.pid == handle.pid]
    assert (process.cmd, process.args) == ("/bin/bash", ["-l", "-c", "sleep 100"])
    assert (process.envs, process.cwd) == ({"A": "b"}, room)
    await done(handle.kill())


async def test_environments(sandbox: Any, done: Done, shared: Sandbox) -> None:
    run = sandbox.commands.run
    told = (
        await done(run("echo $FOO $SANDBOX_WIDE $E2B_SANDBOX $E2B_SANDBOX_ID", envs={"FOO": "bar"}))
    ).stdout
    assert told == f"bar everywhere true {shared.sandbox_id}\n"
    assert (await done(run('echo "$FOO"'))).stdout == "\n"
    assert (await done(run("echo $SANDBOX_WIDE", envs={"SANDBOX_WIDE": "here"}))).stdout == "here\n"


async def test_users(sandbox: Any, done: Done) -> None:
    assert (await done(sandbox.commands.run("whoami; pwd"))).stdout == "user\n/home/user\n"
    assert (await done(sandbox.commands.run("whoami; pwd", user="root"))).stdout == "root\n/root\n"
    with pytest.raises(AuthenticationException, match="invalid username: 'ghost'"):
        await done(sandbox.commands.run("true", user="ghost"))


async def test_sudo_asks_for_no_password(sandbox: Any, done: Done, room: str) -> None:
    run = sandbox.commands.run
    assert (await done(run('sudo whoami; sudo echo "[$FOO]"'))).stdout == "root\n[]\n"
    told = await done(run("echo in | sudo sh -c 'cat; pwd; echo err >&2; exit 7'; echo $?", cwd=room))
    assert (told.stdout, told.stderr) == (f"in\n{room}\n7\n", "err\n")
    told = await done(run("A=1 sudo -E sh -c 'echo $A $SUDO_USER $HOME'; sudo B=2 -- sh -c 'echo $B $HOME'"))
    assert told.stdout == "1 user /home/user\n2 /root\n"
    assert (await done(run("sudo -u user id -un; sudo -i pwd"))).stdout == "user\n/root\n"
    told = await done(run("sudo -n nothing-of-that-name; sudo -u ghost true; sudo -C 3 true; true"))
    assert told.stderr.splitlines() == [
        "sudo: nothing-of-that-name: command not found",
        "sudo: unknown user ghost",
        "sudo: option -C is not supported in this sandbox",
    ]


async def test_sudo_passes_signals_on(sandbox: Any, done: Done) -> None:
    handle = await done(sandbox.commands.run("exec sudo sh -c 'echo up; exec sleep 100'", background=True))
    listed = "until pgrep -u root -x sleep; do :; done"
    await done(sandbox.commands.run(listed))
    await done(sandbox.commands.run(f"kill -TERM {handle.pid}"))
    with pytest.raises(CommandExitException) as caught:
        await done(handle.wait())
    assert caught.value.exit_code == 128 + 15


async def test_sudo_keeps_nothing_of_the_agent_open(shared: Sandbox) -> None:
    handle = shared.commands.run("sudo sleep 100", background=True)
    shared.commands.run("until pgrep -u root -x sleep; do :; done", timeout=20)
    link = shared.commands.run("readlink /proc/1/fd/7", user="root").stdout.strip()
    held = shared.commands.run("ls -l /proc/[0-9]*/fd 2>/dev/null", user="root").stdout
    assert held.count(f" -> {link}\n") == 1
    handle.kill()


async def test_sudo_is_not_for_everybody(sandbox: Any, done: Done) -> None:
    told = await done(sandbox.commands.run("cd /; sudo id; true", user="nobody"))
    assert (told.stdout, told.stderr) == ("", "sudo: not for you, or no such user: root\n")


async def test_working_directories(sandbox: Any, done: Done, room: str) -> None:
    assert (await done(sandbox.commands.run("pwd", cwd=room))).stdout == room + "\n"
    relative = room.removeprefix("/home/user/")
    assert (await done(sandbox.commands.run("pwd", cwd=relative))).stdout == room + "\n"
    with pytest.raises(InvalidArgumentException, match=f"cwd '{room}/none' does not exist"):
        await done(sandbox.commands.run("pwd", cwd=f"{room}/none"))


async def test_a_background_child_keeps_the_stream_open(sandbox: Any, done: Done) -> None:
    result = await done(sandbox.commands.run("(sleep 0.3; echo late) & echo soon"))
    assert result.stdout == "soon\nlate\n"


async def test_long_commands(sandbox: Any, done: Done) -> None:
    text = "x" * 100_000
    result = await done(sandbox.commands.run(f"echo {text} | wc -c"))
    assert result.stdout.strip() == "100001"


async def test_many_commands_at_once(shared: Sandbox) -> None:
    sandbox = await AsyncSandbox.connect(shared.sandbox_id, timeout=LIFETIME_S)
    results = await asyncio.gather(*(sandbox.commands.run(f"echo {number}") for number in range(30)))
    assert [result.stdout for result in results] == [f"{number}\n" for number in range(30)]


# -- terminals


def typed(handle: Any, enough: str) -> str:
    """What a terminal showed until ``enough`` was there."""
    shown = b""
    for _, _, data in handle:
        shown += data or b""
        if enough.encode() in shown:
            break
    return shown.decode(errors="replace")


def test_a_terminal(shared: Sandbox, room: str) -> None:
    handle = shared.pty.create(PtySize(rows=24, cols=80), cwd=room, envs={"ABC": "123"})
    shared.pty.send_stdin(handle.pid, b"echo [$ABC] $TERM; tput cols; pwd; tty; echo pid=$$\nexit\n")
    shown = typed(handle, "exit\r\n")
    assert f"pid={handle.pid}\r\n" in shown
    assert "[123] xterm-256color\r\n80\r\n" in shown
    assert room in shown
    assert handle.wait().exit_code == 0


def test_a_terminal_changes_its_size(shared: Sandbox) -> None:
    handle = shared.pty.create(PtySize(rows=24, cols=80))
    shared.pty.resize(handle.pid, PtySize(rows=30, cols=100))
    shared.pty.send_stdin(handle.pid, b"echo $(tput cols)x$(tput lines); exit\n")
    assert "100x30" in typed(handle, "100x30")
    assert handle.wait().exit_code == 0


def test_a_terminal_of_root_changes_its_size_too(shared: Sandbox) -> None:
    handle = shared.pty.create(PtySize(rows=24, cols=80))
    waits = "trap 'stty size' WINCH; echo re\\ady; until read -t 0.05 x; do :; done"
    shared.pty.send_stdin(handle.pid, f'sudo bash -c "{waits}"; exit\n'.encode())
    assert "ready" in typed(handle, "ready")
    shared.pty.resize(handle.pid, PtySize(rows=30, cols=100))
    assert "30 100" in typed(handle, "30 100")
    shared.pty.send_stdin(handle.pid, b"\n")
    assert handle.wait().exit_code == 0


def test_a_terminal_lives_between_connections(shared: Sandbox) -> None:
    handle = shared.pty.create(PtySize(rows=24, cols=80))
    handle.disconnect()
    shared.pty.send_stdin(handle.pid, b"FOO=kept\n")
    again = shared.pty.connect(handle.pid)
    shared.pty.send_stdin(handle.pid, b"echo [$FOO]; exit\n")
    assert "[kept]" in typed(again, "[kept]")
    assert again.wait().exit_code == 0


def test_terminals_are_killed_by_pid(shared: Sandbox) -> None:
    handle = shared.pty.create(PtySize(rows=24, cols=80))
    assert shared.pty.kill(handle.pid) is True
    assert shared.pty.kill(handle.pid) is False
    assert shared.pty.kill(999999) is False


# -- the sandbox going away


def test_a_command_whose_sandbox_is_killed_says_so(own_sandbox: Callable[..., Sandbox]) -> None:
    mine = own_sandbox()
    handle = mine.commands.run("sleep 100", background=True)
    assert mine.kill() is True
    with pytest.raises(TimeoutException, match="sandbox was killed or reached its end of life"):
        handle.wait()
    assert mine.is_running() is False
    with pytest.raises(TimeoutException):
        mine.commands.run("true")


def test_health_is_true_and_wakes_nobody(own_sandbox: Callable[..., Sandbox]) -> None:
    mine = own_sandbox(timeout=60)
    assert mine.is_running() is True
    mine.pause()
    assert mine.is_running() is False
    assert mine.get_info().state is SandboxState.PAUSED


def test_environment_and_processes_survive_a_pause(own_sandbox: Callable[..., Sandbox]) -> None:
    mine = own_sandbox(envs={"KEPT": "yes"})
    # Both wait in bash itself: what becomes of a program captured while it is loaded is not asked here.
    sleeper = mine.commands.run("echo up; read line", background=True, stdin=True)
    later = mine.commands.run("echo up; read -t 0.5 line; echo done > f", background=True, stdin=True)
    assert first_output(sleeper) == first_output(later) == "up\n"
    mine.pause()
    mine.connect()
    assert mine.commands.run("echo $KEPT").stdout == "yes\n"
    assert sleeper.pid in [process.pid for process in mine.commands.list()]
    again = mine.commands.connect(sleeper.pid)
    assert again.kill() is True
    if later.pid in [process.pid for process in mine.commands.list()]:
        mine.commands.connect(later.pid).wait()
    assert mine.files.read("f") == "done\n"


def test_a_command_started_just_before_a_pause_survives_it(own_sandbox: Callable[..., Sandbox]) -> None:
    """A capture waits for what was just started: gVisor may restore a half-loaded program dead."""
    mine = own_sandbox()
    for _ in range(4):
        sleeper = mine.commands.run("sleep 3600", background=True)
        mine.pause()
        mine.connect()
        assert sleeper.pid in {process.pid for process in mine.commands.list()}
