"""Starting a machine through the launcher (launcher/launch.c): descriptors, options, signs of life."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wardian.isolation.host.cgroup import Cgroup
from wardian.isolation.host.directory import KEEPER, STATUS, MachineDirectory
from wardian.isolation.host.kept import destroy_remains
from wardian.isolation.host.process import HeldProcess
from wardian.model.errors import Kind, WardianError

UID_BASE = 0x7000_0000
"""Machines run as this plus their keeper's pid: no two living ones share a uid, and no human has one."""

LINK_BUFFER = 1 << 20
_SO_SNDBUFFORCE = 32
KEEPER_BACKLOG = 8
LAST_WORDS_S = 1.0


class BootFailed(WardianError):
    """The machine did not come up."""

    kind, code = Kind.UNAVAILABLE, "boot_failed"


class Parcel:
    """Descriptors on their way to the launcher; all of ours are closed once it has them."""

    def __init__(self) -> None:
        self.fds: list[int] = []

    def give(self, fd: int) -> int:
        self.fds.append(fd)
        return fd

    def open(self, path: Path | str, flags: int = os.O_RDONLY) -> int:
        return self.give(os.open(path, flags | os.O_CLOEXEC, 0o600))

    def socket(self, sock: socket.socket) -> int:
        return self.give(sock.detach())

    def close(self) -> None:
        while self.fds:
            os.close(self.fds.pop())


@dataclass(frozen=True, slots=True)
class Ends:
    """What :func:`keeper_options` leaves for the machine: descriptors in the parcel."""

    link: int
    log: int


def keeper_options(directory: MachineDirectory, cgroup: Cgroup, parcel: Parcel) -> tuple[list[str], Ends]:
    """The launcher's options that every machine has, and the machine's ends of the link and of the log."""
    keeper = directory.bind(KEEPER, socket.SOCK_SEQPACKET)
    keeper.listen(KEEPER_BACKLOG)
    host_end, guest_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in (host_end, guest_end):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, LINK_BUFFER)
        with suppress(OSError):  # beyond the host's wmem_max, where we may
            end.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, LINK_BUFFER)
    log, logging = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    options = [
        f"status={parcel.open(directory / STATUS, os.O_WRONLY | os.O_CREAT | os.O_APPEND)}",
        f"uid-base={UID_BASE}",
        f"owner={os.geteuid()}",
        f"listen={parcel.socket(keeper)}",
        f"link={parcel.socket(host_end)}",
        f"log={parcel.give(log)}",
        *(f"cgroup={group}" for group in cgroup.directories),
    ]
    return options, Ends(link=parcel.socket(guest_end), log=parcel.give(logging))


def spawn(launcher: Path, options: Sequence[str], command: Sequence[str], parcel: Parcel) -> HeldProcess:
    """Start the launcher with the descriptors of ``parcel``."""
    argv = [str(launcher), *options, "--", *command]
    actions: list[tuple[Any, ...]] = [
        (os.POSIX_SPAWN_OPEN, number, os.devnull, os.O_RDWR, 0) for number in range(3)
    ]
    # Onto itself: that clears close-on-exec in the child, and only there.
    actions += [(os.POSIX_SPAWN_DUP2, fd, fd) for fd in parcel.fds]
    pid = os.posix_spawn(argv[0], argv, {}, file_actions=actions)
    return HeldProcess(pid, os.pidfd_open(pid))


async def read_byte(fd: int) -> bool:
    """Whether a byte came, rather than the end."""
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(fd, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(fd)
    return bool(os.read(fd, 1))


async def undo(
    directory: MachineDirectory, cgroup: Cgroup, launcher: HeldProcess | None, why: BaseException
) -> str:
    """Remove whatever a start left that failed because of ``why``; what its keeper wrote down, for people."""
    words = ""
    if launcher is not None:
        # Of a machine that has only just ended its keeper still writes; nobody waits for one called off.
        patience_s = 0.0 if isinstance(why, asyncio.CancelledError) else LAST_WORDS_S
        with suppress(TimeoutError):
            async with asyncio.timeout(patience_s):
                await launcher.ended()
        launcher.send(signal.SIGKILL)
        await launcher.ended()
        launcher.reap()
        launcher.close()
    with suppress(OSError):
        words = (directory / STATUS).read_text(errors="replace")[:4000].strip()
    await destroy_remains(directory, cgroup)
    return words or "no reason given"


__all__ = [
    "UID_BASE",
    "BootFailed",
    "Ends",
    "Parcel",
    "keeper_options",
    "read_byte",
    "spawn",
    "undo",
]
