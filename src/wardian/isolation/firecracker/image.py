"""The files of a captured machine, and whether it can be one here."""

from __future__ import annotations

import asyncio
from pathlib import Path

from wardian.isolation.firecracker.jail import Names
from wardian.isolation.host.images import ImageKind, check_memory_size
from wardian.isolation.host.substrate import Substrate
from wardian.isolation.port import MachineImage, MachineSpec

DRIVER_NAME = "firecracker"
STATE, MEMORY, DISK = "state", "memory", "disk.raw"
FILES = (STATE, MEMORY, DISK)
KIND = ImageKind(DRIVER_NAME, FILES, program="Firecracker", install="Firecracker and guest kernel")
MODE = 0o644
"""Firecracker, which is nobody, maps and reads them itself; the directory above is closed to all but us."""

OUT = {STATE: Names.STATE_OUT, MEMORY: Names.MEMORY_OUT}
IN = {STATE: Names.STATE, MEMORY: Names.MEMORY}
"""Where in its jail Firecracker writes, and reads, each."""


def check_image(image: MachineImage, spec: MachineSpec, substrate: Substrate) -> None:
    """Raise :class:`ImageRefused` unless ``image`` can become a machine of ``spec`` here."""
    KIND.check(image, spec, substrate)
    check_memory_size(image, MEMORY)


async def copy_sparse(source: Path, target: Path) -> None:
    """A copy that shares blocks where the file system can, and has the holes that the source has."""
    copying = await asyncio.create_subprocess_exec(
        *("cp", "--reflink=auto", "--sparse=always", "--", str(source), str(target)),
        stdin=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    _, said = await copying.communicate()
    if copying.returncode:
        raise OSError(f"{source.name} cannot be copied: {said.decode(errors='replace').strip()}")
