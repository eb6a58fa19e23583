"""ATTACH, HELLO, QUIESCE, bad frames."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.guest.conftest import GUEST, Agent
from tests.guest.wire import (
    ATTACH,
    CLOSE,
    DATA,
    END,
    EOF,
    EVENT,
    FULL_WINDOW,
    HELLO,
    NOTICE,
    OPEN,
    QUIESCE,
    QUIESCED,
    READ,
    RELIEVE,
    REPLY,
    STAT,
    STATS,
    UNQUIESCE,
    WATCH,
    WINDOW,
    Frame,
    Wire,
    field,
    fields,
    number,
    u8,
    u16,
    u32,
    u64,
)
from tests.native import make


def processes(hello: Frame) -> dict[int, dict[int, bytes]]:
    """By pid."""
    listed = [dict(fields(value)) for tag, value in fields(hello.payload) if tag == 4]
    return {number(process[20]): process for process in listed}


def test_hello(start_agent: Callable[..., Agent]) -> None:
    hello = start_agent().wire.attach(0x1234567890)
    assert number(hello.values[1]) == 1
    assert number(hello.values[2]) == 0x1234567890
    assert 9 not in hello.values


def test_unknown_version_is_an_error(agent: Agent) -> None:
    agent.wire.send(ATTACH, 0, field(1, u16(2)) + field(2, u64(1)))
    assert b"version 2" in agent.wire.expect(lambda frame: frame.type == HELLO).values[9]


def test_identity(agent: Agent) -> None:
    hello = agent.wire.attach(
        2,
        field(3, "box-7"),
        field(4, "0123456789abcdef" * 2),
        field(5, os.urandom(32)),
        field(6, u64(1)),
        field(7, "8d6f1f9c-6a0e-4d5b-9d2c-8f4f3b1c2d3e"),
        field(8, b"/run/e2b/.E2B_SANDBOX_ID\x00644\x00i123"),
        field(8, b"/run/secret\x00600\x00s"),
    )
    assert 9 not in hello.values
    assert (agent.home / "etc/hostname").read_text() == "box-7\n"
    assert (agent.home / "etc/machine-id").read_text() == "0123456789abcdef" * 2 + "\n"
    assert (agent.home / "run/.wardian-boot-id").read_text() == "8d6f1f9c-6a0e-4d5b-9d2c-8f4f3b1c2d3e\n"
    assert (agent.home / "run/e2b/.E2B_SANDBOX_ID").read_text() == "i123"
    assert (agent.home / "run/secret").stat().st_mode & 0o777 == 0o600
    agent.wire.attach(3, field(3, "box-8"))
    assert (agent.home / "etc/hostname").read_text() == "box-8\n"


@pytest.mark.parametrize(
    "file",
    [
        b"relative\x00644\x00x",
        b"/a\x00bad\x00x",
        b"/a\x00644",
        b"",
        b"/etc/passwd/x\x00644\x00x",
        b"/a\x0077777\x00x",
    ],
)
def test_identity_that_cannot_be_applied_is_told(agent: Agent, file: bytes) -> None:
    assert 9 in agent.wire.attach(2, field(8, file)).values


def test_exec_streams_survive_attach_and_others_do_not(agent: Agent) -> None:
    wire = agent.wire
    stream, pid = wire.exec(
        "/bin/sh", "-c", "echo one; read x; echo $x", more=field(8, u8(1)) + field(10, b"label\0bytes")
    )
    assert wire.on(stream, DATA).payload == b"one\n"
    watch = wire.open(WATCH, field(1, "root"), field(2, str(agent.home)))
    assert wire.on(watch, REPLY).errno == 0
    listed = processes(wire.attach(2))
    assert listed[pid] == {20: u32(pid), 10: b"label\0bytes", 11: u32(stream), 12: u8(2)}
    (agent.home / "new").touch()
    wire.send(DATA, stream, b"again\n")
    channels, _ = wire.output(stream)
    assert channels == {1: b"again\n"}
    assert not any(frame.stream == watch for frame in wire.held)
    wire.send(CLOSE, stream)
    assert pid not in processes(wire.attach(3))


def test_an_end_nobody_noted_is_told_again(wire: Wire) -> None:
    stream, pid = wire.exec("/bin/sh", "-c", "exit 9")
    wire.output(stream)
    process = processes(wire.attach(2))[pid]
    assert number(process[12]) == 4
    assert number(process[21]) == 9 << 8
    assert number(wire.on(stream, END).values[21]) == 9 << 8
    wire.send(CLOSE, stream)
    assert processes(wire.attach(3)) == {}


def test_attach_gives_a_stuck_process_a_fresh_window(wire: Wire) -> None:
    stream, _ = wire.exec("/bin/sh", "-c", "yes | head -c 1000000")
    seen = 0
    while seen < FULL_WINDOW:
        seen += len(wire.on(stream, DATA).payload)
    wire.attach(2)
    channels, _ = wire.output(stream)
    assert seen + len(channels[1]) == 1000000


def test_input_given_before_attach_is_not_granted_twice(agent: Agent) -> None:
    wire, gate = agent.wire, agent.home / "gate"
    script = f"until [ -e {gate} ]; do sleep 0.02; done; wc -c"
    stream, _ = wire.exec("/bin/sh", "-c", script, more=field(8, u8(1)))
    for epoch in (2, 3):
        for _ in range(4):
            wire.send(DATA, stream, b"x" * 65536)
        wire.attach(epoch)
    gate.touch()
    wire.send(EOF, stream)
    assert wire.output(stream)[0] == {1: b"524288\n"}
    assert sum(number(frame.payload) for frame in wire.held if frame.type == WINDOW) == 0


def test_hello_of_many_processes_comes_in_pieces(wire: Wire) -> None:
    started = {
        wire.exec("/bin/sleep", "60", more=field(10, bytes([65 + index]) * 16384))[1]: index
        for index in range(12)
    }
    listed = processes(wire.attach(2))
    assert {pid: bytes([65 + index]) * 16384 for pid, index in started.items()} == {
        pid: listed[pid][10] for pid in started
    }
    for pid in started:
        os.kill(pid, 9)


def test_quiesce(agent: Agent) -> None:
    wire = agent.wire
    stream, _ = wire.exec("/bin/sh", "-c", "while sleep 0.01; do echo tick; done")
    watch = wire.open(WATCH, field(1, "root"), field(2, str(agent.home)))
    assert wire.on(watch, REPLY).errno == 0
    assert wire.on(stream, DATA)
    wire.send(QUIESCE, 0)
    wire.expect(lambda frame: frame.type == QUIESCED)
    wire.held.clear()
    (agent.home / "quiet").touch()
    assert wire.quiet(0.2)
    assert wire.path(STAT, "/etc").errno == errno.EBUSY
    wire.send(QUIESCE, 0)
    wire.send(UNQUIESCE, 0)
    assert wire.on(stream, DATA)
    assert wire.on(watch, EVENT).values[25] == b"quiet"
    wire.send(QUIESCE, 0)
    wire.expect(lambda frame: frame.type == QUIESCED)
    wire.attach(2)
    assert wire.on(stream, DATA)
    wire.send(0x18, stream, u8(1) + field(1, u8(9)))
    assert wire.output(stream)[1]


def test_quiesce_in_the_middle_of_a_transfer(agent: Agent) -> None:
    wire = agent.wire
    (agent.home / "big").write_bytes(os.urandom(3 << 20))
    stream = wire.open(READ, field(1, "root"), field(2, str(agent.home / "big")))
    wire.on(stream, REPLY)
    wire.send(QUIESCE, 0)
    wire.expect(lambda frame: frame.type == QUIESCED)
    wire.send(UNQUIESCE, 0)
    channels, end = wire.output(stream)
    assert channels[0] == (agent.home / "big").read_bytes()
    assert end.errno == 0


BAD_PACKETS = [
    b"x",
    b"1234567",
    b"\x99\0\0\0\x01\0\0\0",  # unknown type
    b"\x10\0\x01\0\x01\0\0\0\x10",  # reserved field
    b"\x10\x80\0\0\x01\0\0\0\x10",  # unknown flag
    b"\x10\0\0\0\x02\0\0\0\x10",  # even id
    b"\x10\0\0\0\x01\0\0\0",  # no op
    b"\x11\0\0\0\x02\0\0\0\0\0\0\0",  # a reply nobody asked for
    b"\x02\0\0\0\0\0\0\0",  # HELLO from the host
    b"\x01\0\0\0\0\0\0\0\x01\xff\xff\xff\xff",  # malformed ATTACH
    b"\x12\0\0\0\0\0\0\0x",  # DATA on the link itself
    b"\x12\0\0\0\x63\0\0\0x",  # DATA for a stream that is not
]


@pytest.mark.parametrize("packet", BAD_PACKETS, ids=lambda packet: packet[:12].hex())
def test_bad_packets_do_no_harm(agent: Agent, packet: bytes) -> None:
    agent.wire.link.send(packet)
    agent.wire.next_id = 101
    assert agent.wire.run("/bin/echo", "fine")[0] == {1: b"fine\n"}


def test_an_oversized_packet_is_answered_by_close(wire: Wire) -> None:
    wire.link.setsockopt(1, 7, 1 << 20)
    wire.link.send(b"\x10\0\0\0\x07\0\0\0" + b"x" * 65537)
    assert wire.on(7, CLOSE)


def test_bad_requests_are_answered(wire: Wire) -> None:
    assert wire.ask(0x99).errno == errno.ENOSYS
    assert wire.ask(STAT, b"\x01\xff\0\0\0").errno == errno.EINVAL
    assert wire.ask(STAT, field(1, "root"), field(2, "a\0b")).errno == errno.EINVAL
    assert wire.ask(STAT, field(1, "root"), field(2, "/" + "x" * 5000)).errno == errno.ENAMETOOLONG
    assert wire.ask(0x20, field(6, b"123")).errno == errno.EINVAL
    assert wire.ask(0x15, field(1, "root"), field(2, "/etc/passwd"), field(6, u32(1))).errno == errno.EINVAL


def test_a_second_open_of_a_stream_closes_it(wire: Wire) -> None:
    stream = wire.open(WATCH, field(1, "root"), field(2, "/"))
    assert wire.on(stream, REPLY).errno == 0
    wire.send(OPEN, stream, u8(STAT))
    assert wire.on(stream, CLOSE)


def test_stats(wire: Wire) -> None:
    values = wire.ask(STATS).values
    assert {1, 2, 3, 4, 5, 6, 7} <= set(values)
    assert number(values[1]) >= number(values[2]) > 0
    assert number(values[3]) >= number(values[4]) > 0


def test_relieve_kills_the_biggest(agent: Agent) -> None:
    hog = "x = bytearray(60 << 20); print('ready', flush=True); import time; time.sleep(60)"
    small, _ = agent.wire.exec("/bin/sleep", "60")
    stream, pid = agent.wire.exec(sys.executable, "-c", hog)
    assert agent.wire.on(stream, DATA).payload == b"ready\n"
    agent.wire.send(RELIEVE, 0)
    notice = agent.wire.expect(lambda frame: frame.type == NOTICE)
    assert notice.values[1] == b"oom_kill"
    assert number(notice.values[2]) == pid
    assert number(notice.values[4]) > 60 << 20
    assert os.waitstatus_to_exitcode(number(agent.wire.output(stream)[1].values[21])) == -9
    agent.wire.send(0x18, small, u8(1) + field(1, u8(9)))
    assert agent.wire.output(small)[1]


def test_the_fork_guard_kills_the_crowd_and_nobody_else(start_agent: Callable[..., Agent]) -> None:
    """On a host every process counts as a task, so the limit is always exceeded and ours are counted."""
    wire = start_agent("--processes-max", "8").wire
    wire.attach()
    other, _ = wire.exec("/bin/cat", more=field(8, u8(1)))
    crowd, pid = wire.exec("/bin/sh", "-c", "for i in 1 2 3 4 5 6 7 8 9; do sleep 60 & done; wait")
    notice = wire.expect(lambda frame: frame.type == NOTICE)
    assert notice.values[1] == b"fork_guard"
    assert number(notice.values[2]) == pid
    assert os.waitstatus_to_exitcode(number(wire.output(crowd)[1].values[21])) == -9
    wire.send(DATA, other, b"unhurt")
    assert wire.on(other, DATA).payload == b"unhurt"
    wire.send(EOF, other)
    assert wire.output(other)[1].errno == 0


def test_the_end_of_the_link_ends_the_agent(start_agent: Callable[..., Agent]) -> None:
    start_agent().wire.attach()  # stop() asserts the rest


def test_fuzz(agent_binary: Path) -> None:
    """Random and mutated frames, the same ones every time."""
    make(GUEST, "fuzz")
    result = subprocess.run(
        [GUEST / "build" / "fuzz", agent_binary, "1", "5"], capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 0, result.stdout + result.stderr
