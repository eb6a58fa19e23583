"""The files of a captured machine, and whether it can be one here."""

from __future__ import annotations

import asyncio
from pathlib import Path

from wardian.isolation.firecracker.jail import Names
from wardian.isolation.port import ImageRefused, MachineImage, MachineSpec

DRIVER_NAME = "firecracker"
STATE, MEMORY, DISK = "state", "memory", "disk.raw"
FILES = (STATE, MEMORY, DISK)
MODE = 0o644
"""Firecracker, which is nobody, maps and reads them itself; the directory above is closed to all but us."""

OUT = {STATE: Names.STATE_OUT, MEMORY: Names.MEMORY_OUT}
IN = {STATE: Names.STATE, MEMORY: Names.MEMORY}
"""Where in its jail Firecracker writes, and reads, each."""


def check_image(image: MachineImage, spec: MachineSpec, build: str, cpu_features: frozenset[str]) -> None:
    """Raise :class:`ImageRefused` unless ``image`` can become a machine of ``spec`` here."""
    if image.driver != DRIVER_NAME:
        raise ImageRefused(f"the image was made by the driver {image.driver!r}, not {DRIVER_NAME!r}")
    if image.build != build:
        raise ImageRefused(
            f"the image was made by the build {image.build}, this host has {build}",
            hint="install the Firecracker and guest kernel it was made with, or start the sandbox afresh",
        )
    if missing := sorted(image.cpu_features - cpu_features):
        raise ImageRefused(f"this CPU lacks {', '.join(missing[:8])}, which the image relies on")
    if image.root_digest != spec.root.digest:
        raise ImageRefused(f"the image needs the root {image.root_digest}, not {spec.root.digest}")
    if image.resources != spec.resources:
        raise ImageRefused(f"the image is of a machine with {image.resources}, not {spec.resources}")
    if set(image.files) != set(FILES):
        raise ImageRefused(
            f"the image must consist of {', '.join(FILES)}, not {', '.join(sorted(image.files))}"
        )
    for name in FILES:
        try:
            size = (image.directory / name).stat().st_size
        except OSError as error:
            raise ImageRefused(f"{name} of the image cannot be read: {error}") from error
        if size != image.files[name]:
            raise ImageRefused(f"{name} of the image has {size} bytes, not {image.files[name]}")
    if image.files[MEMORY] != image.resources.memory_mib << 20:
        raise ImageRefused(f"{MEMORY} of the image has the wrong size")


def describe(directory: Path, spec: MachineSpec, build: str, cpu_features: frozenset[str]) -> MachineImage:
    """The image just written to ``directory`` by a machine of ``spec``."""
    return MachineImage(
        directory=directory,
        files={name: (directory / name).stat().st_size for name in FILES},
        driver=DRIVER_NAME,
        build=build,
        cpu_features=cpu_features,
        root_digest=spec.root.digest,
        resources=spec.resources,
    )


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
