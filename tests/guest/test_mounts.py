"""MOUNT: the ferry, with a socket in the place of the kernel's FUSE device."""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass

import pytest
from tests.guest.conftest import Agent
from tests.guest.wire import DATA, QUIESCE, QUIESCED, REPLY, STATS, UNQUIESCE, WINDOW, Wire, field, number

MOUNT, UNMOUNT = 0x50, 0x51
UNANSWERED_MAX = 64


@dataclass
class Kernel:
    """The kernel's side of a mount."""

    device: socket.socket
    wire: Wire

    def mount(self, path: str = "/v", volume: str = "vol1") -> int:
        """The stream of a mount that was made or taken over."""
        stream = self.wire.open(MOUNT, field(2, path) + field(3, volume))
        assert self.wire.on(stream, REPLY).errno == 0
        return stream

    def ask(self, unique: int, size: int = 0, opcode: int = 3) -> bytes:
        packet = struct.pack("<IIQQIIII", 40 + size, opcode, unique, 1, 0, 0, 0, 0) + bytes(size)
        self.device.send(packet)
        return packet

    def answer(self, stream: int, unique: int, size: int = 0) -> bytes:
        packet = struct.pack("<IiQ", 16 + size, 0, unique) + bytes(size)
        self.wire.send(DATA, stream, packet)
        return packet

    def carried(self, stream: int) -> int:
        """The next request that reaches the host, by its number."""
        return int(struct.unpack_from("<Q", self.wire.on(stream, DATA).payload, 8)[0])


@pytest.fixture
def kernel(start_agent: Callable[..., Agent]) -> Iterator[Kernel]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    theirs.setblocking(False)
    agent = start_agent("--fuse", str(theirs.fileno()), pass_fds=(theirs.fileno(),))
    theirs.close()
    ours.settimeout(20)
    agent.wire.attach()
    yield Kernel(ours, agent.wire)
    ours.close()


def test_requests_and_answers_are_carried_as_they_are(kernel: Kernel) -> None:
    stream = kernel.mount()
    for unique, size in ((1, 0), (2, 61_440), (3, 100)):
        asked = kernel.ask(unique, size)
        assert kernel.wire.on(stream, DATA).payload == asked
        assert kernel.answer(stream, unique, size) == kernel.device.recv(1 << 17)
    assert kernel.wire.ask(STATS).errno == 0  # everything else still goes its way


def test_windows_are_kept_both_ways(kernel: Kernel) -> None:
    stream = kernel.mount()
    for unique in range(1, 6):
        kernel.ask(unique, 60_000)
    assert [kernel.carried(stream) for _ in range(4)] == [1, 2, 3, 4]
    assert kernel.wire.quiet(0.2)  # the fifth does not fit
    kernel.wire.send(WINDOW, stream, number_of(240_160))
    assert kernel.carried(stream) == 5
    for unique in (1, 2):
        kernel.answer(stream, unique, 60_000)
    assert number(kernel.wire.on(stream, WINDOW).payload) == 2 * 60_016


def number_of(value: int) -> bytes:
    return value.to_bytes(4, "little")


def test_only_so_many_requests_are_under_way(kernel: Kernel) -> None:
    stream = kernel.mount()
    for unique in range(1, UNANSWERED_MAX + 3):
        kernel.ask(unique)
    assert [kernel.carried(stream) for _ in range(UNANSWERED_MAX)] == list(range(1, UNANSWERED_MAX + 1))
    assert kernel.wire.quiet(0.2)
    kernel.answer(stream, 7)
    assert kernel.carried(stream) == UNANSWERED_MAX + 1


def test_what_needs_no_answer_is_not_waited_for(kernel: Kernel) -> None:
    stream = kernel.mount()
    for unique in range(1, 3 * UNANSWERED_MAX):
        kernel.ask(unique, opcode=2)
    assert [kernel.carried(stream) for _ in range(3 * UNANSWERED_MAX - 1)][-1] == 3 * UNANSWERED_MAX - 1


def test_the_agent_rests_when_every_request_has_its_answer(kernel: Kernel) -> None:
    stream = kernel.mount()
    kernel.ask(1)
    assert kernel.carried(stream) == 1
    kernel.wire.send(QUIESCE, 0)
    assert kernel.wire.quiet(0.2)
    kernel.ask(2)
    kernel.answer(stream, 1)
    assert kernel.wire.on(0, QUIESCED).type == QUIESCED
    assert kernel.wire.quiet(0.2)  # the second stays with the kernel
    kernel.wire.send(UNQUIESCE, 0)
    assert kernel.carried(stream) == 2


def test_another_host_is_asked_again(kernel: Kernel) -> None:
    stream = kernel.mount()
    kernel.ask(1)
    kernel.ask(2)
    assert [kernel.carried(stream) for _ in range(2)] == [1, 2]
    kernel.answer(stream, 1)
    kernel.device.recv(100)
    kernel.wire.attach(2)
    kernel.ask(3)
    assert kernel.wire.quiet(0.2)  # nobody answers for the mount yet
    stream = kernel.mount()
    assert [kernel.carried(stream) for _ in range(2)] == [2, 3]
    kernel.answer(stream, 2)
    assert struct.unpack_from("<Q", kernel.device.recv(100), 8) == (2,)


def test_a_mount_nobody_asks_for_any_more_goes(kernel: Kernel) -> None:
    stream = kernel.mount()
    kernel.ask(1)
    assert kernel.carried(stream) == 1
    kernel.wire.attach(2)
    assert kernel.wire.ask(UNMOUNT).errno == 0
    kernel.mount(volume="another")  # its place is free


def test_a_place_is_taken_by_one_volume(kernel: Kernel) -> None:
    kernel.mount()
    assert kernel.wire.ask(MOUNT, field(2, "/v"), field(3, "other")).errno == errno.EBUSY
    for i in range(15):
        kernel.mount(f"/v{i}")
    assert kernel.wire.ask(MOUNT, field(2, "/one-more"), field(3, "v")).errno == errno.EMFILE


def test_answers_that_nobody_asked_for_are_dropped(kernel: Kernel) -> None:
    stream = kernel.mount()
    kernel.answer(stream, 99)
    kernel.wire.send(DATA, stream, b"short")
    kernel.wire.send(DATA, stream + 2, b"of no stream at all")
    kernel.ask(1)
    assert kernel.carried(stream) == 1


@pytest.mark.parametrize("frames", [0, 500])
def test_the_ferry_ends_with_the_link(kernel: Kernel, frames: int) -> None:
    """Whatever waits, in either direction: nobody is there any more who could want it."""
    stream = kernel.mount()
    for unique in range(1, 10):
        kernel.ask(unique)
    assert kernel.carried(stream) == 1
    for _ in range(frames):
        kernel.wire.open(STATS)
    kernel.wire.link.close()
    with suppress(ConnectionResetError):  # what it had not read
        while kernel.device.recv(1 << 17):
            pass  # the agent's end is closed, by the ferry or with the process; the fixture wants its status


def test_natively_nothing_is_mounted_and_nonsense_is_refused(agent: Agent) -> None:
    for path, volume, error in (
        ("/v", "vol1", errno.EOPNOTSUPP),
        ("v", "vol1", errno.EINVAL),
        ("/v", "x" * 64, errno.EINVAL),
        ("/" + "x" * 5000, "vol1", errno.EINVAL),
    ):
        assert agent.wire.ask(MOUNT, field(2, path), field(3, volume)).errno == error
    assert not os.path.ismount("/v")
