"""Boot a sentry through the launcher: descriptors, argv, and the wait for its first sign of life."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wardian.isolation.gvisor import create
from wardian.isolation.gvisor import profile as numbers
from wardian.isolation.gvisor.cgroup import Cgroup
from wardian.isolation.gvisor.config import machine_config
from wardian.isolation.gvisor.directory import CONTROL, DISK, KEEPER, STATUS, MachineDirectory
from wardian.isolation.gvisor.process import HeldProcess, prefer_for_oom
from wardian.isolation.gvisor.profile import Profile
from wardian.isolation.gvisor.sentry import Sentry, ask_keeper, destroy_remains
from wardian.isolation.port import MachineSpec
from wardian.model.errors import Kind, WardianError

UID_BASE = 0x7000_0000
"""Sentries run as this plus their keeper's pid: no two living ones share a uid, and no human has one."""

BOOT_TIMEOUT_S = 30.0
LINK_BUFFER = 1 << 20
_SO_SNDBUFFORCE = 32
KEEPER_BACKLOG = 8
ENVIRONMENT = ("GOGC=200",)


class BootFailed(WardianError):
    """The machine did not come up."""

    kind, code = Kind.UNAVAILABLE, "boot_failed"


@dataclass(frozen=True, slots=True)
class Tools:
    """The programs a machine is made with: ``launcher/`` builds all but ``runsc`` and the guest ``agent``."""

    runsc: Path
    launcher: Path
    enter: Path
    echo: Path
    agent: Path


@dataclass(frozen=True, slots=True)
class Boot:
    """Everything one boot needs."""

    machine_id: str
    spec: MachineSpec
    profile: Profile
    tools: Tools
    directory: MachineDirectory
    cgroup: Cgroup
    tmpfs_disk: bool


class _Parcel:
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


async def boot(plan: Boot) -> Sentry:
    """Start the launcher and return when the sentry answers. On failure or cancellation nothing is left."""
    launcher: HeldProcess | None = None
    booted = -1
    try:
        launcher, booted = _spawn(plan)
        async with asyncio.timeout(BOOT_TIMEOUT_S):
            if not await _read_byte(booted):
                raise BootFailed(f"machine {plan.machine_id} did not boot: {_status(plan)}")
            if not plan.profile.direct:
                create.adopt_control_socket(plan.directory)
            greeting = await ask_keeper(plan.directory)
    except BaseException as error:
        await asyncio.shield(asyncio.ensure_future(_undo(plan, launcher)))
        if isinstance(error, TimeoutError):
            raise BootFailed(f"machine {plan.machine_id} did not boot within {BOOT_TIMEOUT_S:g} s") from None
        if isinstance(error, OSError):
            raise BootFailed(f"machine {plan.machine_id} did not boot: {error}") from error
        raise
    finally:
        if booted >= 0:
            os.close(booted)
    launcher.close()  # the greeting has brought another handle on it
    # When memory runs out the sentry goes first: killing one of its stubs would only wedge a guest process.
    sentry = Sentry(plan.machine_id, plan.directory, plan.cgroup, greeting)
    prefer_for_oom(sentry.process.pid)
    return sentry


def _spawn(plan: Boot) -> tuple[HeldProcess, int]:
    """Start the launcher; also the end of the pipe on which the sentry says it is up."""
    parcel = _Parcel()
    booted, booting = os.pipe()
    try:
        parcel.give(booting)
        options = _options(plan, parcel, booting)
        command = plan.profile.command(
            plan.machine_id, plan.spec.resources, bundle=plan.directory / create.BUNDLE
        )
        argv = [str(plan.tools.launcher), *options, "--", *command]
        actions: list[tuple[Any, ...]] = [
            (os.POSIX_SPAWN_OPEN, number, os.devnull, os.O_RDWR, 0) for number in range(3)
        ]
        # Onto itself: that clears close-on-exec in the child, and only there.
        actions += [(os.POSIX_SPAWN_DUP2, fd, fd) for fd in parcel.fds]
        pid = os.posix_spawn(argv[0], argv, {}, file_actions=actions)
        return HeldProcess(pid, os.pidfd_open(pid)), booted
    except BaseException:
        os.close(booted)
        raise
    finally:
        parcel.close()


def _options(plan: Boot, parcel: _Parcel, booting: int) -> list[str]:
    """The launcher's options (launcher/launch.c explains them)."""
    directory, resources = plan.directory, plan.spec.resources
    keeper = directory.bind(KEEPER, socket.SOCK_SEQPACKET)
    keeper.listen(KEEPER_BACKLOG)
    host_end, guest_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in (host_end, guest_end):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, LINK_BUFFER)
        with suppress(OSError):  # beyond the host's wmem_max, where we may
            end.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, LINK_BUFFER)
    log, logging = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    direct = plan.profile.direct
    options = [
        f"status={parcel.open(directory / STATUS, os.O_WRONLY | os.O_CREAT | os.O_APPEND)}",
        f"uid-base={UID_BASE}",
        f"owner={os.geteuid()}",
        f"listen={parcel.socket(keeper)}",
        f"link={parcel.socket(host_end)}",
        f"log={parcel.give(log)}",
        f"exec={parcel.open(plan.tools.runsc)}",
        *(f"cgroup={group}" for group in plan.cgroup.directories),
        *(f"env={pair}" for pair in ENVIRONMENT),
    ]
    if plan.tmpfs_disk:
        options.append(f"tmpdisk={resources.disk_mib}:{numbers.FD_DISK}")
    else:
        options.append(f"disk={parcel.open(directory / DISK, os.O_RDWR)}:{numbers.FD_DISK}")
    link, agent = parcel.socket(guest_end), parcel.open(plan.tools.agent)
    table = {2: parcel.give(logging), numbers.FD_SYNC: booting}
    if direct:
        options.append(f"root={directory.path}")
        table |= _direct_fds(plan, parcel) | {numbers.FD_LINK: link, numbers.FD_AGENT: agent}
    else:
        create.write_bundle(directory, plan.spec, plan.tools.enter)
        options += ["create=1", f"root={create.disk_mount_point(directory)}"]
        table |= {0: link, 1: agent}
    return options + [f"fd={source}:{number}" for number, source in table.items()]


def _direct_fds(plan: Boot, parcel: _Parcel) -> dict[int, int]:
    """Descriptors of ``runsc boot``, by number."""
    config = parcel.give(os.memfd_create("config"))
    os.write(config, machine_config(plan.spec.resources, root_image=plan.spec.root.path, overlay="dir=/disk"))
    os.lseek(config, 0, os.SEEK_SET)
    null = parcel.open(os.devnull, os.O_RDWR)
    return {
        numbers.FD_IMAGE: parcel.open(plan.spec.root.path),
        numbers.FD_CONTROL: parcel.socket(plan.directory.bind(CONTROL, socket.SOCK_STREAM)),
        numbers.FD_CONFIG: config,
        **{numbers.FD_STDIO + i: null for i in range(3)},
        numbers.FD_ENTER: parcel.open(plan.tools.enter),
    }


async def _read_byte(fd: int) -> bool:
    """Whether a byte came, rather than the end."""
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(fd, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(fd)
    return bool(os.read(fd, 1))


def _status(plan: Boot) -> str:
    with suppress(OSError):
        return (plan.directory / STATUS).read_text(errors="replace")[:4000].strip() or "no reason given"
    return "no reason given"


async def _undo(plan: Boot, launcher: HeldProcess | None) -> None:
    if launcher is not None:
        launcher.send(signal.SIGKILL)
        await launcher.ended()
        launcher.reap()
        launcher.close()
    await destroy_remains(plan.directory, plan.cgroup)


__all__ = ["UID_BASE", "Boot", "BootFailed", "Tools", "boot"]
