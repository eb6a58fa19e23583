"""Start QEMU through the launcher, as nobody, in a jail: descriptors, and the wait for its first words."""

from __future__ import annotations

import asyncio
import os
import socket
from dataclasses import dataclass

from wardian.isolation.host.cgroup import Cgroup
from wardian.isolation.host.directory import CONTROL, DISK, KEEPER, STATUS, MachineDirectory
from wardian.isolation.host.kept import ask_keeper
from wardian.isolation.host.launching import BootFailed, Parcel, keeper_options, spawn, undo
from wardian.isolation.host.process import HeldProcess, prefer_for_oom
from wardian.isolation.port import MachineSpec
from wardian.isolation.qemu import command as numbers
from wardian.isolation.qemu.command import Accelerator, boot_command, kernel_line, waiting_command
from wardian.isolation.qemu.jail import PROGRAM
from wardian.isolation.qemu.qmp import QmpBroken, conversation
from wardian.isolation.qemu.substrate import Ground
from wardian.isolation.qemu.tools import Tools
from wardian.isolation.qemu.vmm import Vmm

LAUNCH_TIMEOUT_S = 30.0
STREAM_BUFFER = 1 << 18


@dataclass(frozen=True, slots=True)
class Launch:
    """Everything one start needs."""

    machine_id: str
    spec: MachineSpec
    ground: Ground
    tools: Tools
    directory: MachineDirectory
    cgroup: Cgroup
    echo: bool = False


async def launch(plan: Launch, *, boot: bool) -> Vmm:
    """Start QEMU and return when it answers: ``boot`` a machine, or wait for an image. On failure or
    cancellation nothing is left."""
    launcher: HeldProcess | None = None
    try:
        launcher = _spawn(plan, boot=boot)
        async with asyncio.timeout(LAUNCH_TIMEOUT_S):
            async with conversation(plan.directory):
                pass
            greeting = await ask_keeper(plan.directory)
    except BaseException as error:
        words = await asyncio.shield(
            asyncio.ensure_future(undo(plan.directory, plan.cgroup, launcher, error))
        )
        if isinstance(error, (TimeoutError, OSError, QmpBroken)):
            raise BootFailed(f"machine {plan.machine_id} did not start: {error}: {words}") from error
        raise
    launcher.close()  # the greeting has brought another handle on it
    vmm = Vmm(plan.machine_id, plan.directory, plan.cgroup, greeting)
    prefer_for_oom(vmm.init.pid)
    return vmm


def _spawn(plan: Launch, *, boot: bool) -> HeldProcess:
    parcel = Parcel()
    try:
        for name in (KEEPER, CONTROL, STATUS):  # a predecessor's
            (plan.directory / name).unlink(missing_ok=True)
        options, ends = keeper_options(plan.directory, plan.cgroup, parcel)
        ours, guests = socket.socketpair()
        for end in (ours, guests):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, STREAM_BUFFER)
        ours.setblocking(False)
        control = plan.directory.bind(CONTROL, socket.SOCK_STREAM)
        control.listen(8)
        control.setblocking(False)  # QEMU may be woken for a caller that it has accepted already
        table = {
            2: ends.log,
            numbers.FD_CONTROL: parcel.socket(control),
            numbers.FD_STREAM: parcel.socket(guests),
            numbers.FD_ROOT: parcel.open(plan.spec.root.path),
            numbers.FD_DISK: parcel.open(plan.directory / DISK, os.O_RDWR),
        }
        if boot:
            table[numbers.FD_KERNEL] = parcel.open(plan.ground.kernel.image)
            table[numbers.FD_INITRD] = parcel.open(plan.ground.initrd)
        if plan.ground.accelerator is Accelerator.KVM:
            table[numbers.FD_KVM] = parcel.open("/dev/kvm", os.O_RDWR)
        options += [
            f"root={plan.directory.path}",
            f"jail={plan.ground.jail}",
            f"exec={parcel.open(plan.ground.jail / PROGRAM)}",
            f"relay={ends.link}:{parcel.socket(ours)}",
            *(f"fd={source}:{number}" for number, source in table.items()),
        ]
        return spawn(plan.tools.launcher, options, _command(plan, boot=boot), parcel)
    finally:
        parcel.close()


def _command(plan: Launch, *, boot: bool) -> list[str]:
    ground = plan.ground
    if not boot:
        return waiting_command(plan.spec, ground.accelerator)
    words = kernel_line(
        plan.spec, ground.accelerator, ground.tsc_khz, ground.kernel.arguments, echo=plan.echo
    )
    return boot_command(plan.spec, ground.accelerator, words)


__all__ = ["Launch", "launch"]
