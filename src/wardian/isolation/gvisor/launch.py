"""Boot a sentry through the launcher: descriptors, argv, and the wait for its first sign of life."""

from __future__ import annotations

import asyncio
import os
import socket
from dataclasses import dataclass
from pathlib import Path

from wardian.isolation.gvisor import create
from wardian.isolation.gvisor import profile as numbers
from wardian.isolation.gvisor.config import machine_config
from wardian.isolation.gvisor.profile import Profile
from wardian.isolation.gvisor.sentry import Sentry
from wardian.isolation.host.cgroup import Cgroup
from wardian.isolation.host.directory import CONTROL, DISK, MachineDirectory
from wardian.isolation.host.kept import ask_keeper
from wardian.isolation.host.launching import (
    BootFailed,
    Parcel,
    keeper_options,
    read_byte,
    spawn,
    undo,
)
from wardian.isolation.host.process import HeldProcess, prefer_for_oom
from wardian.isolation.port import MachineSpec

BOOT_TIMEOUT_S = 30.0
ENVIRONMENT = ("GOGC=200",)


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


async def boot(plan: Boot) -> Sentry:
    """Start the launcher and return when the sentry answers. On failure or cancellation nothing is left."""
    launcher: HeldProcess | None = None
    booted = -1
    try:
        launcher, booted = _spawn(plan)
        async with asyncio.timeout(BOOT_TIMEOUT_S):
            if not await read_byte(booted):
                raise ConnectionError("it ended")
            if not plan.profile.direct:
                create.adopt_control_socket(plan.directory)
            greeting = await ask_keeper(plan.directory)
    except BaseException as error:
        words = await asyncio.shield(
            asyncio.ensure_future(undo(plan.directory, plan.cgroup, launcher, error))
        )
        if isinstance(error, TimeoutError):
            raise BootFailed(f"machine {plan.machine_id} did not boot within {BOOT_TIMEOUT_S:g} s") from None
        if isinstance(error, OSError):
            raise BootFailed(f"machine {plan.machine_id} did not boot: {error}: {words}") from error
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
    parcel = Parcel()
    booted, booting = os.pipe()
    try:
        parcel.give(booting)
        options = _options(plan, parcel, booting)
        command = plan.profile.command(
            plan.machine_id, plan.spec.resources, bundle=plan.directory / create.BUNDLE
        )
        return spawn(plan.tools.launcher, options, command, parcel), booted
    except BaseException:
        os.close(booted)
        raise
    finally:
        parcel.close()


def _options(plan: Boot, parcel: Parcel, booting: int) -> list[str]:
    """The launcher's options (launcher/launch.c explains them)."""
    directory, resources = plan.directory, plan.spec.resources
    direct = plan.profile.direct
    options, ends = keeper_options(directory, plan.cgroup, parcel)
    options += [
        f"exec={parcel.open(plan.tools.runsc)}",
        *(f"env={pair}" for pair in ENVIRONMENT),
    ]
    if plan.tmpfs_disk:
        options.append(f"tmpdisk={resources.disk_mib}:{numbers.FD_DISK}")
    else:
        options.append(f"disk={parcel.open(directory / DISK, os.O_RDWR)}:{numbers.FD_DISK}")
    link, agent = ends.link, parcel.open(plan.tools.agent)
    table = {2: ends.log, numbers.FD_SYNC: booting}
    if direct:
        options.append(f"root={directory.path}")
        table |= _direct_fds(plan, parcel) | {numbers.FD_LINK: link, numbers.FD_AGENT: agent}
    else:
        create.write_bundle(directory, plan.spec, plan.tools.enter)
        options += ["create=1", f"root={create.disk_mount_point(directory)}"]
        table |= {0: link, 1: agent}
    return options + [f"fd={source}:{number}" for number, source in table.items()]


def _direct_fds(plan: Boot, parcel: Parcel) -> dict[int, int]:
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


__all__ = ["Boot", "Tools", "boot"]
