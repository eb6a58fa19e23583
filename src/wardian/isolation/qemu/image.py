"""The files of a captured machine: devices, memory, disk, and a seal over what QEMU would believe."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from wardian.isolation.host.images import ImageKind, check_memory_size
from wardian.isolation.host.substrate import Substrate
from wardian.isolation.port import ImageRefused, MachineImage, MachineSpec

DRIVER_NAME = "qemu"
DEVICES, MEMORY, DISK_FILE, SEAL = "devices.state", "memory.raw", "disk.raw", "seal.json"
FILES = (DEVICES, MEMORY, DISK_FILE, SEAL)
MODES = {MEMORY: 0o644}
"""QEMU, which is nobody, maps the memory itself; the directory above is closed to all but us."""
KIND = ImageKind(DRIVER_NAME, FILES, program="QEMU", install="QEMU")
_SEAL_MAX = 4096


def check_image(image: MachineImage, spec: MachineSpec, substrate: Substrate) -> None:
    """Raise :class:`ImageRefused` unless ``image`` can become a machine of ``spec`` here."""
    KIND.check(image, spec, substrate)
    check_memory_size(image, MEMORY)
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


def seal(directory: Path) -> None:
    """Write the seal over the devices just captured."""
    fd = os.open(directory / SEAL, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(fd, "w") as file:
        json.dump({"devices": _digest(directory / DEVICES)}, file)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()


__all__ = [
    "DEVICES",
    "DISK_FILE",
    "DRIVER_NAME",
    "FILES",
    "KIND",
    "MEMORY",
    "MODES",
    "check_image",
    "seal",
]
