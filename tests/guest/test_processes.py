"""EXEC and what belongs to it, against the sanitized agent."""

from __future__ import annotations

import errno
import os
import signal
import time
from pathlib import Path

from tests.guest.conftest import Agent
from tests.guest.wire import (
    CLOSE,
    CONTROL,
    DATA,
    END,
    EOF,
    EVENT,
    EXEC,
    FULL_WINDOW,
    REPLY,
    SIGNAL,
    STAT,
    WINDOW,
    Wire,
    field,
    number,
    u8,
    u16,
    u32,
)

STDIN = field(8, u8(1))


def pty(columns: int, rows: int) -> bytes:
    return field(6, u16(columns)) + field(7, u16(rows))


def test_output_channels_and_status(wire: Wire) -> None:
    channels, status = wire.run("/bin/sh", "-c", "echo out; echo err >&2; exit 3")
    assert channels == {1: b"out\n", 2: b"err\n"}
    assert os.waitstatus_to_exitcode(status) == 3


def test_environment_user_and_groups(agent: Agent) -> None:
    channels, _ = agent.wire.run(
        "/bin/sh", "-c", "id -u; id -G; pwd; env; umask", user="user", more=field(4, "A=b c")
    )
    lines = channels[1].decode().splitlines()
    assert lines[:3] == ["1000", "1000 2000", f"{agent.home}/home/user"]
    assert {"A=b c", "USER=user", "LOGNAME=user", "SHELL=/bin/bash", f"HOME={agent.home}/home/user"} <= set(
        lines
    )
    assert any(line.startswith("PATH=/usr/local/sbin:") for line in lines)
    assert lines[-1] == "0022"
    assert agent.wire.run("/usr/bin/id", "-un", user="0")[0][1] == b"root\n"


def test_a_group_may_be_named_and_is_the_only_one(agent: Agent) -> None:
    def ids(user: str) -> str:
        return agent.wire.run("/bin/sh", "-c", "id -u; id -g; id -G; echo $HOME", user=user)[0][1].decode()

    home = f"{agent.home}/home/user"
    assert ids("user:extra").split() == ["1000", "2000", "2000", home]
    assert ids("1000:4242").split() == ["1000", "4242", "4242", home]
    assert ids("user").split() == ["1000", "1000", "1000", "2000", home]
    assert ids("root:extra").split()[:3] == ["0", "2000", "2000"]
    assert ids("4711").split() == ["4711", "0", "0", "/"]
    for absent in ("user:absent", "user:", "absent:extra", "99999999999", "1000:99999999999"):
        reply = agent.wire.ask(EXEC, field(1, absent), field(3, "/bin/true"))
        assert (reply.errno, reply.values[1]) == (errno.EINVAL, f"invalid username: '{absent}'".encode())


def test_given_environment_overrides(wire: Wire) -> None:
    channels, _ = wire.run(
        "env", more=field(4, "PATH=/bin:/usr/bin") + field(4, "HOME=/x") + field(4, "HOMER=1")
    )
    lines = channels[1].decode().splitlines()
    assert sorted(line for line in lines if line.startswith(("PATH", "HOME"))) == [
        "HOME=/x",
        "HOMER=1",
        "PATH=/bin:/usr/bin",
    ]


def test_signals_and_session_are_fresh(wire: Wire) -> None:
    channels, _ = wire.run(
        "/bin/sh",
        "-c",
        "grep -E 'SigBlk|SigIgn' /proc/self/status; ps -o sid= -p $$; echo $$; ls /proc/self/fd",
    )
    lines = channels[1].decode().split()
    # The C library keeps signals 32 and 33 for itself; a process that has cancelled threads passes on that
    # it ignores them, and nobody is let near them. As pid 1 the agent has nobody to inherit that from.
    assert [int(mask, 16) & ~(0b11 << 31) for mask in (lines[1], lines[3])] == [0, 0]
    assert lines[4] == lines[5], "its own session"
    assert lines[6:] == ["0", "1", "2", "3"], "no descriptor of the agent's (3 is the listing itself)"


def test_cwd(agent: Agent) -> None:
    (agent.home / "home/user/work").mkdir()
    channels, _ = agent.wire.run("/bin/pwd", user="user", more=field(5, "work"))
    assert channels[1].decode().strip() == f"{agent.home}/home/user/work"
    reply = agent.wire.ask(EXEC, field(1, "root"), field(3, "/bin/pwd"), field(5, "missing"))
    assert reply.errno == errno.ENOENT
    assert reply.values[1].decode() == f"cwd '{agent.home}/root/missing' does not exist"


def test_refusals(wire: Wire) -> None:
    reply = wire.ask(EXEC, field(1, "nobody-here"), field(3, "/bin/true"))
    assert (reply.errno, reply.values[1]) == (errno.EINVAL, b"invalid username: 'nobody-here'")
    assert wire.ask(EXEC, field(1, "toolong"), field(3, "/bin/true")).errno == errno.EINVAL
    assert wire.ask(EXEC, field(1, "root"), field(3, "/no/such/program")).errno == errno.ENOENT
    assert wire.ask(EXEC, field(1, "root"), field(3, "no-such-program")).errno == errno.ENOENT
    assert wire.ask(EXEC, field(1, "root"), field(3, "/etc/passwd")).errno == errno.EACCES
    assert wire.ask(EXEC, field(1, "root"), field(3, "a\0b")).errno == errno.EINVAL
    assert wire.ask(EXEC, field(1, "root")).errno == errno.E2BIG
    reply = wire.ask(EXEC, field(3, "/bin/true"), field(10, b"x" * 16385))
    assert reply.errno == errno.E2BIG
    assert reply.flags == 1, "an error is the stream's last frame"


def test_missing_user_is_user(wire: Wire) -> None:
    stream = wire.open(EXEC, field(3, "/usr/bin/id"), field(3, "-u"))
    assert wire.on(stream, REPLY).errno == 0
    assert wire.output(stream)[0] == {1: b"1000\n"}


def test_stdin_echo_and_eof(wire: Wire) -> None:
    stream, _ = wire.exec("/bin/cat", more=STDIN)
    wire.send(DATA, stream, b"Hello, World!")
    assert wire.on(stream, DATA).payload == b"Hello, World!"
    wire.send(EOF, stream)
    channels, end = wire.output(stream)
    assert (channels, number(end.values[21])) == ({}, 0)


def test_stdin_of_megabytes_keeps_to_the_window(wire: Wire) -> None:
    stream, _ = wire.exec("/bin/sh", "-c", "sleep 0.3; sha256sum | cut -c1-8; cat", more=STDIN)
    total, sent, window = 3 << 20, 0, FULL_WINDOW
    while sent < total:
        while window == 0:
            window += number(wire.on(stream, WINDOW).payload)
        size = min(window, 60000, total - sent)
        wire.send(DATA, stream, b"z" * size)
        window -= size
        sent += size
    wire.send(EOF, stream)
    channels, end = wire.output(stream)
    assert len(channels[1]) == 9
    assert end.errno == 0


def test_input_nobody_reads_is_dropped_and_granted(wire: Wire) -> None:
    stream, _ = wire.exec("/bin/sh", "-c", "exec sleep 30 <&-", more=STDIN)
    granted = 0
    for _ in range(4):
        wire.send(DATA, stream, b"x" * 65536)
    while granted < 131072:
        granted += number(wire.on(stream, WINDOW).payload)
    wire.send(CONTROL, stream, u8(1) + field(1, u8(9)))
    assert os.waitstatus_to_exitcode(number(wire.output(stream)[1].values[21])) == -9


def test_too_much_input_is_a_protocol_error(wire: Wire) -> None:
    stream, _ = wire.exec("/bin/sleep", "30", more=STDIN)
    for _ in range(5):
        wire.send(DATA, stream, b"x" * 60000)
    assert wire.on(stream, CLOSE)
    wire.send(CONTROL, stream, u8(1) + field(1, u8(9)))  # the process goes on until told
    assert wire.on(stream, END)


def test_a_silent_reader_stops_only_its_own_stream(wire: Wire) -> None:
    flood, _ = wire.exec("/bin/sh", "-c", "yes | head -c 2000000")
    sent = 0
    while sent < FULL_WINDOW:
        sent += len(wire.on(flood, DATA).payload)
    assert wire.run("/bin/echo", "hi")[0] == {1: b"hi\n"}
    assert not any(frame.stream == flood for frame in wire.held)
    wire.send(WINDOW, flood, u32(FULL_WINDOW))
    channels, end = wire.output(flood)
    assert sent + len(channels[1]) == 2000000
    assert number(end.values[21]) == 0


def test_bulk_output_is_complete(wire: Wire) -> None:
    channels, _ = wire.run("/bin/sh", "-c", "head -c 20000000 /dev/zero; head -c 3000000 /dev/zero >&2")
    assert (len(channels[1]), len(channels[2])) == (20000000, 3000000)


def test_exit_is_told_while_a_child_keeps_the_output(wire: Wire) -> None:
    stream, _ = wire.exec("/bin/sh", "-c", "(read x < /dev/tty; sleep 0.6; echo late) & echo early; exit 5")
    event = wire.on(stream, EVENT)
    assert event.payload[0] == 1
    assert os.waitstatus_to_exitcode(number(event.values[21])) == 5
    channels, _ = wire.output(stream)
    assert channels[1] == b"early\nlate\n"


def test_zombies_are_reaped(agent: Agent) -> None:
    wire = agent.wire
    channels, _ = wire.run("/bin/sh", "-c", "(sh -c 'echo $$; exec sleep 0.1' &) ; sleep 0.4")
    orphan = int(channels[1])
    deadline = time.monotonic() + 5
    while Path(f"/proc/{orphan}").exists():
        assert time.monotonic() < deadline
        wire.ask(SIGNAL, field(20, u32(orphan)), field(22, u8(0)))


def test_a_reaped_pid_is_gone_at_once(wire: Wire) -> None:
    stream, pid = wire.exec("/bin/sleep", "60")
    assert wire.ask(SIGNAL, field(20, u32(pid)), field(22, u8(9))).errno == 0
    event = wire.on(stream, EVENT)
    assert os.waitstatus_to_exitcode(number(event.values[21])) == -signal.SIGKILL
    assert wire.ask(SIGNAL, field(20, u32(pid)), field(22, u8(0))).errno == errno.ESRCH
    assert wire.ask(SIGNAL, field(20, u32(1)), field(22, u8(9))).errno == errno.EINVAL


def test_group_signal(wire: Wire) -> None:
    stream, pid = wire.exec("/bin/sh", "-c", "sleep 60 & sleep 60")
    assert wire.ask(SIGNAL, field(20, u32(pid)), field(22, u8(15)), field(23, u8(1))).errno == 0
    _, end = wire.output(stream)  # ends only because the background sleep died too
    assert os.waitstatus_to_exitcode(number(end.values[21])) == -15


def test_pty(wire: Wire) -> None:
    stream, _ = wire.exec("/bin/sh", "-c", "stty size; tty; read x; stty size; echo $x", more=pty(90, 33))
    seen = b""
    while b"/dev/pts/" not in seen or not seen.endswith(b"\n"):
        frame = wire.on(stream, DATA)
        assert frame.flags == 3
        seen += frame.payload
    assert seen.startswith(b"33 90\r\n/dev/pts/")
    wire.send(CONTROL, stream, u8(2) + field(6, u16(100)) + field(7, u16(40)))
    wire.send(DATA, stream, b"word\n")
    channels, end = wire.output(stream)
    assert channels[3] == b"word\r\n40 100\r\nword\r\n"
    assert number(end.values[21]) == 0


def test_pty_of_a_user_and_hang_up(wire: Wire) -> None:
    channels, status = wire.run(
        "/bin/sh",
        "-c",
        "test -O $(tty) && echo mine; (sleep 0.1; echo later) & exit 4",
        user="user",
        more=pty(80, 24),
    )
    assert b"mine\r\n" in channels[3]
    assert os.waitstatus_to_exitcode(status) == 4


def test_pty_bulk(wire: Wire) -> None:
    channels, _ = wire.run(
        "/bin/sh", "-c", "stty raw -echo; yes 0123456789 | head -c 1000000", more=pty(80, 24)
    )
    assert len(channels[3]) == 1000000


def test_many_at_once(wire: Wire) -> None:
    streams = [wire.exec("/bin/sh", "-c", f"echo {index}; exit {index}")[0] for index in range(60)]
    for index, stream in enumerate(streams):
        channels, end = wire.output(stream)
        assert channels[1] == f"{index}\n".encode()
        assert os.waitstatus_to_exitcode(number(end.values[21])) == index


def test_long_arguments_come_in_several_frames(wire: Wire) -> None:
    words = ["w" * 1000] * 900
    channels, _ = wire.run(
        "/bin/sh", "-c", 'echo "$# ${#BIG}"', "sh", *words, more=field(4, "BIG=" + "v" * 100000)
    )
    assert channels[1] == b"900 100000\n"
    too_much = wire.ask(EXEC, field(1, "root"), field(3, "/bin/true"), field(10, b"x" * (2 << 20)))
    assert too_much.errno == errno.E2BIG


def test_an_opening_can_be_given_up(wire: Wire) -> None:
    for _ in range(40):  # more than may be open at once
        stream, wire.next_id = wire.next_id, wire.next_id + 2
        wire.send(0x10, stream, u8(STAT) + b"x" * 1000, flags=1)
        wire.send(CLOSE, stream)
    assert wire.run("/bin/true")[1] == 0
