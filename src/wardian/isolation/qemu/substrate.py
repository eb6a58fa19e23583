"""What machines stand on here: which QEMU, what runs the guest's instructions, which kernel."""

from __future__ import annotations

import asyncio
import hashlib
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from wardian.isolation.host.substrate import Substrate, digest_of, file_identity, this_cpu
from wardian.isolation.qemu.command import LAYOUT, Accelerator
from wardian.isolation.qemu.initramfs import initramfs
from wardian.isolation.qemu.jail import make_jail
from wardian.isolation.qemu.kernel import GuestKernel, find_kernel, given_kernel
from wardian.isolation.qemu.tools import INSTALL_HINT, Tools
from wardian.model.errors import Kind, WardianError

OLDEST = (9, 2)
_TSC_STEP_KHZ = 10_000
"""How far apart two measurements of one counter may be and still name the same image."""


class QemuUnusable(WardianError):
    """There is no QEMU we can use, or something that it needs is missing."""

    kind, code = Kind.UNAVAILABLE, "qemu_unusable"


@dataclass(frozen=True, slots=True)
class Ground:
    """Everything that the machines of one accelerator share."""

    substrate: Substrate
    accelerator: Accelerator
    jail: Path
    kernel: GuestKernel
    initrd: Path
    tsc_khz: int


class GroundReader:
    """Reads and prepares the ground, again only when something of it has changed."""

    def __init__(self, tools: Tools, directory: Path) -> None:
        self._tools = tools
        self._directory = directory
        self._known: dict[tuple[object, ...], Ground] = {}
        self._turn = asyncio.Lock()

    async def read(self, accelerator: Accelerator) -> Ground:
        """What we would boot now. Raises :class:`QemuUnusable` and ``KernelUnusable``."""
        tools = self._tools
        files = (tools.qemu, tools.firmware, tools.init, tools.agent, tools.tsc)
        identities = [file_identity(path) for path in files]
        for path, identity in zip(files, identities, strict=True):
            if identity is None:
                hint = INSTALL_HINT if path in (tools.qemu, tools.firmware) else "build it: make setup"
                raise QemuUnusable(f"{path} is missing", hint=hint)
        async with self._turn:
            kernel = await asyncio.to_thread(self._kernel)
            key = (accelerator, file_identity(kernel.image), kernel, *identities)
            if key not in self._known:
                self._known = {key: await asyncio.to_thread(self._prepare, accelerator, kernel)}
            return self._known[key]

    def _kernel(self) -> GuestKernel:
        tools = self._tools
        if tools.kernel is not None:
            return given_kernel(tools.kernel, tools.kernel_arguments, self._directory / "given")
        found = find_kernel(tools.kernels)
        return GuestKernel(found.image, found.modules, tuple(tools.kernel_arguments.split()))

    def _prepare(self, accelerator: Accelerator, kernel: GuestKernel) -> Ground:
        tools = self._tools
        version = _version(tools.qemu)
        program = f"{digest_of(tools.qemu)[:32]}{digest_of(tools.firmware)[:8]}"
        tsc_khz = _tsc_khz(tools.tsc) if accelerator is Accelerator.TCG else 0
        counter = f".{round(tsc_khz / _TSC_STEP_KHZ)}" if tsc_khz else ""
        archive = initramfs(tools.init, tools.agent, kernel.modules)
        features = this_cpu() if accelerator is Accelerator.KVM else frozenset({"emulated"})
        return Ground(
            substrate=Substrate(version, f"sha256:{program}+{LAYOUT}.{accelerator}{counter}", features),
            accelerator=accelerator,
            jail=make_jail(tools.qemu, tools.firmware, self._directory / "jails" / program),
            kernel=kernel,
            initrd=_kept(archive, self._directory / "initramfs"),
            tsc_khz=tsc_khz,
        )


def _version(qemu: Path) -> str:
    try:
        said = subprocess.run([str(qemu), "--version"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise QemuUnusable(f"{qemu} cannot be run: {error}", hint=INSTALL_HINT) from error
    words = said.split()
    if words[:2] != ["QEMU", "emulator"] or len(words) < 4:
        raise QemuUnusable(f"{qemu} is no QEMU", hint=INSTALL_HINT)
    numbers = tuple(int(part) for part in words[3].split(".")[:2])
    if numbers < OLDEST:
        raise QemuUnusable(f"QEMU {words[3]} is too old", hint=INSTALL_HINT)
    return f"QEMU {words[3]}"


def _tsc_khz(tsc: Path) -> int:
    measured = subprocess.run([str(tsc)], capture_output=True, text=True, check=False)
    if measured.returncode:
        raise QemuUnusable("this CPU has no steady time stamp counter, which emulated machines count with")
    return int(measured.stdout)


def _kept(archive: bytes, directory: Path) -> Path:
    path = directory / f"{hashlib.sha256(archive).hexdigest()}.cpio"
    if not path.exists():
        directory.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(f".{os.getpid()}.draft")
        draft.write_bytes(archive)
        draft.chmod(0o644)  # QEMU, which is nobody, opens it by descriptor
        draft.rename(path)
    return path


def ground_details(ground: Ground) -> Mapping[str, object]:
    """For people: what a probe tells of the ground."""
    return {
        "accelerator": str(ground.accelerator),
        "kernel": ground.kernel.image.parent.name[:12],
        "modules": [path.stem for path in ground.kernel.modules],
    }


__all__ = ["Ground", "GroundReader", "QemuUnusable", "ground_details"]
