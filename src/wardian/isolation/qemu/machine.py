"""A running QEMU machine."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from wardian.isolation.host.directory import DISK, PAUSED
from wardian.isolation.host.disk import copy_sparse
from wardian.isolation.host.process import start_time
from wardian.isolation.port import (
    IsolationLevel,
    Machine,
    MachineExit,
    MachineGone,
    MachineImage,
    MachineSpec,
    MachineStats,
)
from wardian.isolation.qemu import image as images
from wardian.isolation.qemu.command import Accelerator
from wardian.isolation.qemu.qmp import Qmp, QmpBroken, opened_for_writing
from wardian.isolation.qemu.substrate import Ground
from wardian.isolation.qemu.vmm import Vmm
from wardian.model.errors import Unavailable

_T = TypeVar("_T")
LEVELS = {
    Accelerator.KVM: IsolationLevel.MICROVM_KVM,
    Accelerator.TCG: IsolationLevel.MICROVM_EMULATED,
}


class QemuMachine(Machine):
    """See :class:`Machine`."""

    def __init__(self, vmm: Vmm, spec: MachineSpec, ground: Ground, ram_tool: Path, *, frozen: bool) -> None:
        self.id = vmm.id
        self.spec = spec
        self.link = vmm.link
        self.level = LEVELS[ground.accelerator]
        self._vmm = vmm
        self._ground = ground
        self._ram_tool = ram_tool
        self._frozen = frozen
        self._turn = asyncio.Lock()
        self._repair: asyncio.Future[None] | None = None
        self._record = {
            "driver": images.DRIVER_NAME,
            "id": self.id,
            "root": {"path": str(spec.root.path), "digest": spec.root.digest},
            "resources": {
                name: getattr(spec.resources, name)
                for name in ("cpu_count", "memory_mib", "disk_mib", "processes_max")
            },
            "accelerator": str(ground.accelerator),
            "build": ground.substrate.build,
            "version": ground.substrate.version,
            "cpu_features": sorted(ground.substrate.cpu_features),
            "keeper": {"pid": vmm.keeper.pid, "start": start_time(vmm.keeper.pid)},
            "vmm": {"pid": vmm.init.pid, "start": start_time(vmm.init.pid)},
        }

    @property
    def record(self) -> dict[str, Any]:
        return dict(self._record)

    @property
    def frozen(self) -> bool:
        return self._frozen

    async def freeze(self) -> None:
        await self._undivided(self._freeze)

    async def thaw(self) -> None:
        await self._undivided(self._thaw)

    async def capture(self, directory: Path, *, keep_running: bool) -> MachineImage:
        try:
            image = await self._undivided(partial(self._capture, directory, stay_stopped=not keep_running))
        except asyncio.CancelledError:
            self._repair = asyncio.ensure_future(self._undivided(self._give_up_capture))
            self._repair.add_done_callback(_forget)
            raise
        if not keep_running:
            await self.kill()
        return image

    async def stats(self) -> MachineStats:
        try:
            usage = self._vmm.cgroup.usage()
            disk = (self._vmm.directory / DISK).stat().st_blocks * 512
        except OSError as error:
            raise MachineGone(f"machine {self.id} is gone") from error
        resources = self.spec.resources
        return MachineStats(
            cpu_ns=usage.cpu_ns,
            memory_bytes=usage.memory_bytes,
            memory_limit_bytes=resources.memory_mib << 20,
            memory_cache_bytes=usage.cache_bytes,
            disk_bytes=disk,
            disk_limit_bytes=resources.disk_mib << 20,
            processes=1,  # the guest's are behind its kernel: the host sees QEMU
        )

    def on_memory_pressure(self, callback: Callable[[], None]) -> None:
        """Never called: the guest's own kernel gives memory back, and kills what takes too much."""

    async def kill(self) -> None:
        await self._vmm.kill()
        async with self._turn:
            pass  # what a cancelled call had left under way has failed by now, and let go of its files

    async def wait(self) -> MachineExit:
        return await self._vmm.wait()

    async def _freeze(self) -> None:
        if not self._frozen:
            (self._vmm.directory / PAUSED).touch()
            async with self._vmm.conversation() as qmp:
                await qmp.call("stop")
            self._frozen = True

    async def _thaw(self) -> None:
        if self._frozen:
            async with self._vmm.conversation() as qmp:
                await self._proceed(qmp)
            (self._vmm.directory / PAUSED).unlink(missing_ok=True)
            self._frozen = False

    async def _proceed(self, qmp: Qmp) -> None:
        await qmp.call("cont")
        self._vmm.tell_time()

    async def _capture(self, directory: Path, *, stay_stopped: bool) -> MachineImage:
        async with self._vmm.conversation() as qmp:
            await qmp.call("stop")
            done = False
            try:
                await self._save_devices(qmp, directory)
                await self._save_memory(qmp, directory)
                await asyncio.to_thread(copy_sparse, self._vmm.directory / DISK, directory / images.DISK_FILE)
                await asyncio.to_thread(images.seal, directory)
                image = images.describe(directory, self.spec, self._ground.substrate)
                done = True
                return image
            finally:
                if not self._frozen and not (done and stay_stopped):
                    await self._proceed(qmp)

    async def _give_up_capture(self) -> None:
        if not self._frozen:
            async with self._vmm.conversation() as qmp:
                await self._proceed(qmp)

    async def _save_devices(self, qmp: Qmp, directory: Path) -> None:
        fd = opened_for_writing(directory / images.DEVICES, 0o600)
        try:
            name = await qmp.give(fd)
        finally:
            os.close(fd)
        await qmp.call("xen-save-devices-state", filename=name, live=True)

    async def _save_memory(self, qmp: Qmp, directory: Path) -> None:
        fd = os.open(directory / images.MEMORY, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.fchmod(fd, images.MODES[images.MEMORY])
            writing = await asyncio.create_subprocess_exec(
                str(self._ram_tool),
                str(self._vmm.init.pid),
                await _address(qmp),
                str(self.spec.resources.memory_mib << 20),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=fd,
                stderr=asyncio.subprocess.PIPE,
            )
        finally:
            os.close(fd)
        _, said = await writing.communicate()
        if writing.returncode:
            words = said.decode(errors="replace").strip()
            raise Unavailable(f"the memory of {self.id} cannot be written: {words}", code="capture_failed")

    async def _undivided(self, work: Callable[[], Awaitable[_T]]) -> _T:
        """Do it after what is under way, and to its end even if the caller is cancelled meanwhile."""

        async def in_turn() -> _T:
            async with self._turn:
                self._vmm.check_alive()
                return await work()

        task = asyncio.ensure_future(in_turn())
        task.add_done_callback(_forget)  # the caller may be gone
        return await asyncio.shield(task)


def _forget(done: asyncio.Future[Any]) -> None:
    if not done.cancelled():
        done.exception()


async def _address(qmp: Qmp) -> str:
    """Where QEMU has the guest's memory."""
    said = str(await qmp.call("human-monitor-command", command_line="gpa2hva 0"))
    found = re.search(r"is (0x[0-9a-f]{1,16})", said)
    if found is None:
        raise QmpBroken(f"QEMU does not say where the guest's memory is: {said[:200]}")
    return found[1]


__all__ = ["LEVELS", "QemuMachine"]
