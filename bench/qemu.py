"""The peer of our microVMs: QEMU driven by hand, with the driver's own flags, kernel and agent.

Nothing is around it: no launcher, jail, control group or unprivileged user, and no process that waits. Memory
is a file in memory that QEMU shares; a capture copies it sparsely, and clones map the copy privately. Whoever
writes a script round QEMU would do it so, if they had read how.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import subprocess
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wardian.isolation.firecracker.vsock import Link
from wardian.isolation.host.directory import CONTROL, DISK, MachineDirectory
from wardian.isolation.host.disk import MANY_FILES, DiskTemplates
from wardian.isolation.port import MachineImage, MachineSpec
from wardian.isolation.qemu import QemuDriver, Tools
from wardian.isolation.qemu.command import FD_CONTROL, FD_STREAM, Accelerator, boot_command, kernel_line
from wardian.isolation.qemu.qmp import Qmp, conversation
from wardian.isolation.qemu.substrate import Ground, GroundReader

MEMORY, DEVICES = "memory.raw", "devices.state"
PADDING = bytes(64)  # completes what a captured machine had received of a frame


class PlainQemu:
    """Makes machines, as a driver would: see :class:`bench.island.Maker`."""

    def __init__(self, directory: Path, tools: Tools, driver: QemuDriver) -> None:
        self.directory = directory
        self.tools = tools
        self._driver = driver
        self._grounds = GroundReader(tools, directory / "ground")
        self.disks = DiskTemplates(directory / "disks", MANY_FILES)
        self.running: set[PlainMachine] = set()

    async def prepare(self, spec: MachineSpec) -> PlainWaiting:
        found = await self._driver.probe()
        ground = await self._grounds.read(Accelerator(found.details["accelerator"]))
        return PlainWaiting(self, spec, ground)

    async def sweep(self, known: Set[str]) -> list[str]:
        for machine in list(self.running):
            await machine.kill()
        return []

    async def close(self) -> None:
        await self._driver.close()


@dataclass(frozen=True, slots=True)
class PlainWaiting:
    """Nothing runs yet."""

    maker: PlainQemu
    spec: MachineSpec
    ground: Ground

    async def start(self) -> PlainMachine:
        directory = self._directory()
        await self.maker.disks.make(self.spec.resources.disk_mib, directory / DISK)
        ground = self.ground
        line = kernel_line(self.spec, ground.accelerator, ground.tsc_khz, (), echo=False)
        boot = ("-kernel", str(ground.kernel.image), "-initrd", str(ground.initrd), "-append", line)
        memory = os.memfd_create("memory")
        os.ftruncate(memory, self.spec.resources.memory_mib << 20)
        return self._run(directory, memory, "share=on", boot)

    async def restore(self, image: MachineImage) -> PlainMachine:
        directory = self._directory()
        await asyncio.to_thread(_copy, image.directory / DISK, directory / DISK)
        memory = os.open(image.directory / MEMORY, os.O_RDONLY)
        mapped = "share=off,readonly=on,rom=off"
        machine = self._run(directory, memory, mapped, ("-S", "-incoming", "defer"))
        async with conversation(machine.directory) as qmp:
            await qmp.call("migrate-set-capabilities", capabilities=[{"capability": "events", "state": True}])
            await qmp.call("migrate-incoming", uri=f"file:{image.directory / DEVICES}")
            while (await qmp.event("MIGRATION"))["status"] != "completed":
                pass
            await qmp.call("cont")
        machine.stream.send(PADDING)
        return machine

    async def discard(self) -> None:
        pass

    def _directory(self) -> MachineDirectory:
        directory = MachineDirectory(self.maker.directory / f"m{secrets.token_hex(4)}")
        directory.create()
        return directory

    def _run(
        self, directory: MachineDirectory, memory: int, mapped: str, more: Sequence[str]
    ) -> PlainMachine:
        control = directory.bind(CONTROL, socket.SOCK_STREAM)
        control.listen(8)
        ours, guests = socket.socketpair()
        ours.setblocking(False)
        size = self.spec.resources.memory_mib
        names = {
            f"id=control,fd={FD_CONTROL}": f"id=control,fd={control.fileno()}",
            f"id=link,fd={FD_STREAM}": f"id=link,fd={guests.fileno()}",
            "/dev/fdset/1": str(self.spec.root.path),
            "/dev/fdset/2": str(directory / DISK),
            "/firmware": str(self.maker.tools.firmware),
            "kvm,device=/dev/fdset/3": "kvm",
        }
        flags = _flags(boot_command(self.spec, self.ground.accelerator, ""), names)
        backend = f"memory-backend-file,id=ram,size={size}M,mem-path=/proc/self/fd/{memory},{mapped}"
        process = subprocess.Popen(
            (str(self.maker.tools.qemu), *flags, "-object", backend, *more),
            pass_fds=(control.fileno(), guests.fileno(), memory),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,  # clones complain whenever their guest frees memory
        )
        control.close()
        guests.close()
        machine = PlainMachine(self.maker, self.spec, directory, process, ours, memory)
        self.maker.running.add(machine)
        return machine


def _flags(words: Sequence[str], names: dict[str, str]) -> Iterator[str]:
    """The driver's flags up to the memory, with files by their names instead of by descriptor."""
    flags = iter(words[1 : words.index("-object")])
    for word in flags:
        if word == "-add-fd":
            next(flags)
            continue
        for old, new in names.items():
            word = word.replace(old, new)
        yield word


@dataclass(eq=False)
class PlainMachine:
    """A QEMU process, and the joint between its byte stream and the packets of a link."""

    maker: PlainQemu
    spec: MachineSpec
    directory: MachineDirectory
    process: subprocess.Popen[bytes]
    stream: socket.socket
    memory: int
    link: socket.socket = field(init=False)

    def __post_init__(self) -> None:
        self._joint = Link()
        self._joint.carry(self.stream)
        self.link = self._joint.host_end

    @property
    def record(self) -> dict[str, Any]:
        return {"vmm": {"pid": self.process.pid}}

    async def freeze(self) -> None:
        async with conversation(self.directory) as qmp:
            await qmp.call("stop")

    async def thaw(self) -> None:
        async with conversation(self.directory) as qmp:
            await qmp.call("cont")

    async def capture(self, directory: Path, *, keep_running: bool) -> MachineImage:
        async with conversation(self.directory) as qmp:
            await qmp.call("stop")
            await self._save(qmp, directory)
            await qmp.call("cont")
        return MachineImage(
            directory, {}, "by hand", "", frozenset(), self.spec.root.digest, self.spec.resources
        )

    async def kill(self) -> None:
        await self._joint.close()
        self.process.kill()
        self.process.wait()
        os.close(self.memory)
        self.directory.remove()
        self.maker.running.discard(self)

    async def _save(self, qmp: Qmp, to: Path) -> None:
        await qmp.call("xen-save-devices-state", filename=str(to / DEVICES), live=True)
        await asyncio.to_thread(_copy, Path(f"/proc/{os.getpid()}/fd/{self.memory}"), to / MEMORY)
        await asyncio.to_thread(_copy, self.directory / DISK, to / DISK)


def _copy(source: Path, target: Path) -> None:
    subprocess.run(("cp", "--sparse=always", str(source), str(target)), check=True)
    os.chmod(target, 0o644)


__all__ = ["PlainQemu"]
