"""``wardian sandbox`` and its neighbours, as a person or a script runs them against a real server."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from e2b import Sandbox
from tests.acceptance.conftest import Server
from typer.testing import CliRunner

from wardian.cli.main import app

WARDIAN = (sys.executable, "-m", "wardian.cli.main")
PATIENCE_S = 120


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a command said, and how it ended."""

    code: int
    out: bytes
    err: str

    @property
    def lines(self) -> list[str]:
        """Standard output, as text."""
        return self.out.decode().splitlines()


Run = Callable[..., Outcome]


@pytest.fixture(scope="session")
def run(server: Server) -> Run:
    """Runs a command line against the session's server."""

    def act(*arguments: str, stdin: bytes = b"", cwd: Path | None = None) -> Outcome:
        done = subprocess.run(
            [*WARDIAN, *arguments],
            input=stdin,
            capture_output=True,
            cwd=cwd,
            timeout=PATIENCE_S,
        )
        return Outcome(done.returncode, done.stdout, done.stderr.decode())

    return act


@pytest.fixture
def inside(server: Server) -> Run:
    """Runs a command line without a process of its own: quicker, where standard streams are not at stake."""

    def act(*arguments: str) -> Outcome:
        result = CliRunner().invoke(app, arguments)
        return Outcome(result.exit_code, result.stdout_bytes, result.stderr)

    return act


def start(server: Server, *arguments: str) -> subprocess.Popen[bytes]:
    """A command that goes on in the background."""
    return subprocess.Popen(
        [*WARDIAN, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def test_a_sandbox_from_its_creation_to_its_end(run: Run) -> None:
    """Create, look, pause, refuse, resume, fork, kill, and read what happened."""
    made = run(
        "sandbox", "create", "--metadata", "kind=life story", "--env", "COLOUR=blue", "--timeout", "120"
    )
    assert made.code == 0
    [sandbox_id] = made.lines
    assert "gvisor" in made.err

    listed = run("sandbox", "ls", "--json", "--metadata", "kind=life story")
    assert [item["sandboxID"] for item in json.loads(listed.out)] == [sandbox_id]
    assert run("sandbox", "exec", sandbox_id[:12], "printenv", "COLOUR").out == b"blue\n"

    assert run("sandbox", "pause", sandbox_id).lines == [sandbox_id]
    again = run("sandbox", "pause", sandbox_id, "--json")
    assert again.code == 6
    assert json.loads(again.err)["error"]["message"]
    refused = run("sandbox", "exec", sandbox_id, "true")
    assert refused.code == 125
    assert f"wardian sandbox resume {sandbox_id}" in refused.err
    assert run("sandbox", "resume", sandbox_id).lines == [sandbox_id]

    forks = run("sandbox", "fork", "--count", "2", sandbox_id).lines
    assert len({sandbox_id, *forks}) == 3
    assert run("sandbox", "kill", sandbox_id, *forks).lines == [sandbox_id, *forks]
    gone = run("sandbox", "inspect", sandbox_id)
    assert gone.code == 3
    assert "wardian sandbox ls" in gone.err
    story = run("sandbox", "logs", sandbox_id)
    assert any("pause" in line for line in story.lines)
    assert any("snapshot" in line for line in story.lines)


def test_files_alone_are_kept_when_asked(run: Run, inside: Run, own_sandbox: Callable[..., Sandbox]) -> None:
    """By a pause and by a snapshot: what comes of them has booted anew, with the files."""
    boot = ("cat", "/proc/sys/kernel/random/boot_id")
    made = own_sandbox()
    made.files.write("kept.txt", "kept")
    made.commands.run("sleep 1000", background=True)
    before = run("sandbox", "exec", made.sandbox_id, *boot).out
    [snapshot] = inside("sandbox", "snapshot", made.sandbox_id, "--files-only", "--name", "files-alone").lines
    assert run("sandbox", "exec", made.sandbox_id, *boot).out == before
    assert inside("sandbox", "pause", "--files-only", made.sandbox_id).lines == [made.sandbox_id]
    assert "filesystem" in inside("sandbox", "inspect", made.sandbox_id).out.decode()
    inside("sandbox", "resume", made.sandbox_id)
    [other] = inside("sandbox", "create", snapshot).lines
    for each in (made.sandbox_id, other):
        assert run("sandbox", "exec", each, *boot).out != before
        assert run("sandbox", "exec", each, "cat", "kept.txt").out == b"kept"
        assert run("sandbox", "exec", each, "pgrep", "-x", "sleep").code == 1
    made.commands.run("sleep 1000", background=True)
    whole = json.loads(inside("sandbox", "snapshot", made.sandbox_id, "--json").out)["snapshotID"]
    shown = json.loads(inside("snapshot", "show", whole, "--json").out)
    assert (shown["memory"], shown["storedBytes"] > 0, shown["sizeBytes"] > 0) == (True, True, True)
    assert "holds      files" in inside("snapshot", "show", "files-alone").lines
    [third] = inside("sandbox", "create", whole).lines
    assert run("sandbox", "exec", third, "pgrep", "-x", "sleep").code == 0
    inside("sandbox", "kill", other, third)
    for each in (snapshot, whole):
        assert inside("template", "rm", each).code == 0


def test_the_build_and_the_digest_of_the_files_are_shown(run: Run, shared: Sandbox) -> None:
    """By `ls` and `inspect`, as the template says them itself."""
    template = json.loads(run("template", "inspect", "base", "--json").out)
    listed = next(line for line in run("sandbox", "ls").lines if shared.sandbox_id in line)
    inspected = run("sandbox", "inspect", shared.sandbox_id).out.decode()
    for fact in (template["buildID"], template["tree"]):
        assert fact in listed
        assert fact in inspected


def test_streams_and_status_are_the_commands_own(run: Run, shared: Sandbox) -> None:
    """Output and errors apart, the exit code as it is."""
    script = "echo to out; echo to err >&2; exit 7"
    outcome = run("sandbox", "exec", shared.sandbox_id, "sh", "-c", script)
    assert outcome == Outcome(7, b"to out\n", "to err\n")


def test_output_as_json(run: Run, shared: Sandbox) -> None:
    """For programs that want it in one piece; failures to start look alike."""
    script = "echo to out; echo to err >&2; exit 7"
    outcome = run("sandbox", "exec", "--json", shared.sandbox_id, "--", "sh", "-c", script)
    assert outcome.code == 7
    assert json.loads(outcome.out) == {"exitCode": 7, "stdout": "to out\n", "stderr": "to err\n"}
    failed = run("sandbox", "exec", "--json", shared.sandbox_id, "no-such-program")
    assert failed.code == 127
    assert "no-such-program" in json.loads(failed.err)["error"]["message"]


def test_bytes_go_through_unchanged(run: Run, shared: Sandbox) -> None:
    """Every byte value, in both directions, and the end of input too."""
    data = bytes(range(256)) * 4096
    assert run("sandbox", "exec", shared.sandbox_id, "cat", stdin=data).out == data


def test_arguments_are_not_parsed_again(run: Run, shared: Sandbox) -> None:
    """Spaces, quotes, dollars and options reach the program as they are."""
    odd = ["a b", "$HOME", '"', "'", "*", "--help", "-n", ""]
    outcome = run("sandbox", "exec", shared.sandbox_id, "printf", "%s\\n", *odd)
    assert outcome.lines == odd


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["no-such-program"], 127),
        (["/etc/passwd"], 126),
        (["sh", "-c", "kill -9 $$"], 137),
    ],
)
def test_failures_look_as_in_a_shell(run: Run, shared: Sandbox, arguments: Sequence[str], code: int) -> None:
    """Not found, not executable, ended by a signal."""
    assert run("sandbox", "exec", shared.sandbox_id, *arguments).code == code


def test_options_of_exec(run: Run, shared: Sandbox) -> None:
    """User, directory, variables; a wrong directory is Wardian's failure, not the command's."""
    options = ["--user", "root", "--cwd", "/etc", "--env", "X=y z"]
    script = 'echo "$(id -un) $(pwd) $X"'
    assert run("sandbox", "exec", *options, shared.sandbox_id, "sh", "-c", script).out == b"root /etc y z\n"
    wrong = run("sandbox", "exec", "--cwd", "/nowhere", shared.sandbox_id, "true")
    assert wrong.code == 125
    assert "/nowhere" in wrong.err


def test_ctrl_c_goes_to_the_command(server: Server, shared: Sandbox) -> None:
    """It may handle it and end as it likes."""
    script = "trap 'echo caught; exit 42' INT; echo ready; while :; do sleep 0.05; done"
    command = start(server, "sandbox", "exec", shared.sandbox_id, "bash", "-c", script)
    assert command.stdout is not None
    assert command.stdout.readline() == b"ready\n"
    command.send_signal(signal.SIGINT)
    out, _ = command.communicate(timeout=PATIENCE_S)
    assert (command.returncode, out) == (42, b"caught\n")


def test_a_closed_pipe_ends_the_command(server: Server, shared: Sandbox) -> None:
    """`... | head -1` leaves nothing running inside."""
    mark = "mark-of-the-closed-pipe"
    command = start(server, "sandbox", "exec", shared.sandbox_id, "yes", mark)
    assert command.stdout is not None
    assert command.stdout.readline() == f"{mark}\n".encode()
    command.stdout.close()
    assert command.wait(PATIENCE_S) == 128 + signal.SIGPIPE
    assert command.stderr is not None
    assert command.stderr.read() == b""
    command.stderr.close()
    assert not [process for process in shared.commands.list() if mark in process.args]


def test_a_file_there_and_back(run: Run, shared: Sandbox, room: str, tmp_path: Path) -> None:
    """Content and the executable bit; into a directory, or under another name."""
    (tmp_path / "tool").write_bytes(bytes(range(256)) * 2000)
    (tmp_path / "tool").chmod(0o755)
    assert run("sandbox", "cp", str(tmp_path / "tool"), f"{shared.sandbox_id}:{room}").code == 0
    assert run("sandbox", "exec", shared.sandbox_id, "test", "-x", f"{room}/tool").code == 0
    back = run("sandbox", "cp", "--json", f"{shared.sandbox_id}:{room}/tool", "back", cwd=tmp_path)
    assert json.loads(back.out) == {"path": "back"}
    assert (tmp_path / "back").read_bytes() == (tmp_path / "tool").read_bytes()
    assert stat.S_IMODE((tmp_path / "back").stat().st_mode) == 0o755


def test_a_directory_there_and_back(run: Run, shared: Sandbox, room: str, tmp_path: Path) -> None:
    """The tree, its permissions and its links; existing directories are copied into."""
    tree = tmp_path / "tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "sub/run.sh").write_text("#!/bin/sh\necho ran\n")
    (tree / "sub/run.sh").chmod(0o750)
    (tree / "link").symlink_to("sub/run.sh")
    (tree / "name with 'quotes' and spaces").write_text("x")
    assert run("sandbox", "cp", str(tree), f"{shared.sandbox_id}:{room}").code == 0
    assert run("sandbox", "exec", shared.sandbox_id, f"{room}/tree/link").out == b"ran\n"
    assert not shared.files.exists("/tmp/.wardian-copy")
    back = run("sandbox", "cp", f"{shared.sandbox_id}:{room}/tree", str(tmp_path / "back"))
    assert back.code == 0, back.err
    assert sorted(
        path.relative_to(tmp_path / "back").as_posix() for path in (tmp_path / "back").rglob("*")
    ) == [
        "link",
        "name with 'quotes' and spaces",
        "sub",
        "sub/run.sh",
    ]
    assert os.readlink(tmp_path / "back/link") == "sub/run.sh"
    assert stat.S_IMODE((tmp_path / "back/sub/run.sh").stat().st_mode) == 0o750
    assert not [entry.name for entry in shared.files.list("/tmp") if "wardian-copy" in entry.name]


def test_what_cannot_be_copied_is_told(run: Run, shared: Sandbox, room: str, tmp_path: Path) -> None:
    """Missing sources, odd files, and copies that lead nowhere."""
    shared.commands.run(f"mkfifo {room}/fifo")
    for source, target, code in (
        (str(tmp_path / "missing"), f"{shared.sandbox_id}:{room}", 3),
        (f"{shared.sandbox_id}:{room}/missing", str(tmp_path), 3),
        (f"{shared.sandbox_id}:{room}/fifo", str(tmp_path), 2),
        (str(tmp_path), str(tmp_path), 2),
    ):
        outcome = run("sandbox", "cp", source, target)
        assert outcome.code == code, outcome
        assert outcome.err.startswith("error: ")


def test_templates_are_listed(inside: Run) -> None:
    """`base`, for people and for programs."""
    assert any(line.startswith("base ") for line in inside("template", "ls").lines)
    listed = json.loads(inside("template", "ls", "--json").out)
    assert any("base" in item["aliases"] for item in listed)


def test_wrong_words_are_refused(inside: Run, server: Server) -> None:
    """Each kind of mistake has its exit code and says what to do."""
    for arguments, code, word in (
        (["sandbox", "create", "no-such-template"], 3, "no-such-template"),
        (["sandbox", "inspect", "../etc"], 2, "not a sandbox id"),
        (["sandbox", "kill"], 2, "--all"),
        (["sandbox", "create", "--env", "X"], 2, "NAME=VALUE"),
        (["sandbox", "resume", "--disk", "4096", "i1"], 2, "--disk"),
        (["sandbox", "fork", "--cpus", "4", "i1"], 2, "--cpus"),
        (["snapshot", "show", "no-such-snapshot"], 3, "no-such-snapshot"),
        (["sandbox", "--api-key", "wrong", "ls"], 5, "WARDIAN_API_KEY"),
        (["sandbox", "--url", "http://127.0.0.1:1", "--api-key", "x", "ls"], 4, "wardian serve"),
        (["sandbox", "--data", str(server.data / "none"), "ls"], 4, "wardian serve"),
    ):
        outcome = inside(*arguments)
        assert (outcome.code, word in outcome.err) == (code, True), outcome


def test_the_local_server_is_found_by_its_directory(inside: Run, server: Server, shared: Sandbox) -> None:
    """No URL, no key: what `wardian serve` left in its data directory is enough."""
    assert shared.sandbox_id in inside("sandbox", "--data", str(server.data), "ls", "--quiet").lines


def test_the_doctor_boots_a_machine(run: Run) -> None:
    """And leaves nothing behind; a host that runs these tests can run sandboxes."""
    outcome = run("doctor", "--json")
    examined = json.loads(outcome.out)
    levels = {finding["name"]: finding["level"] for finding in examined["findings"]}
    assert examined["usable"]
    assert outcome.code == 0
    assert levels["driver gvisor"] == levels["base image"] == levels["server"] == "ok"
