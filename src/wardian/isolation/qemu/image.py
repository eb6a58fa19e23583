"""The files of a captured machine: devices, memory, disk, and a seal over what QEMU would believe."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from wardian.isolation.host.substrate import Substrate
from wardian.isolation.port import ImageRefused, MachineImage, MachineSpec

DRIVER_NAME = "qemu"
DEVICES, MEMORY, DISK_FILE, SEAL = "devices.state", "memory.raw", "disk.raw", "seal.json"
FILES = (DEVICES, MEMORY, DISK_FILE, SEAL)
MODES = {MEMORY: 0o644}
"""QEMU, which is nobody, maps the memory itself; the directory above is closed to all but us."""
_SEAL_MAX = 4096


def check_image(image: MachineImage, spec: MachineSpec, substrate: Substrate) -> None:
    """Raise :class:`ImageRefused` unless ``image`` can become a machine of ``spec`` here."""
    if image.driver != DRIVER_NAME:
        raise ImageRefused(f"the image was made by the driver {image.driver!r}, not {DRIVER_NAME!r}")
    if image.build != substrate.build:
        raise ImageRefused(
            f"the image was made by the QEMU build {image.build}, this host has {substrate.build}",
            hint="install the QEMU it was made with, or start the sandbox afresh",
        )
    if image.root_digest != spec.root.digest:
        raise ImageRefused(f"the image needs the root {image.root_digest}, not {spec.root.digest}")
    missing = sorted(image.cpu_features - substrate.cpu_features)
    if missing:
        raise ImageRefused(f"this CPU lacks {', '.join(missing)}, which the image relies on")
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
    _check_seal(image)


def _check_seal(image: MachineImage) -> None:
    """QEMU's loader of device states is not made for hostile ones: it only ever sees what was sealed."""
    try:
        with (image.directory / SEAL).open("rb") as file:
            sealed = json.loads(file.read(_SEAL_MAX))["devices"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ImageRefused(f"{SEAL} of the image cannot be read: {error}") from error
    if sealed != _digest(image.directory / DEVICES):
        raise ImageRefused(f"{DEVICES} of the image is damaged")
    if image.files[MEMORY] != image.resources.memory_mib << 20:
        raise ImageRefused(f"{MEMORY} of the image has the wrong size")


def seal(directory: Path) -> None:
    """Write the seal over the devices just captured."""
    fd = os.open(directory / SEAL, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(fd, "w") as file:
        json.dump({"devices": _digest(directory / DEVICES)}, file)


def describe(directory: Path, spec: MachineSpec, substrate: Substrate) -> MachineImage:
    """The image just written to ``directory`` by a machine of ``spec``."""
    return MachineImage(
        directory=directory,
        files={name: (directory / name).stat().st_size for name in FILES},
        driver=DRIVER_NAME,
        build=substrate.build,
        cpu_features=substrate.cpu_features,
        root_digest=spec.root.digest,
        resources=spec.resources,
    )


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()


__all__ = [
    "DEVICES",
    "DISK_FILE",
    "DRIVER_NAME",
    "FILES",
    "MEMORY",
    "MODES",
    "check_image",
    "describe",
    "seal",
]
