"""The files of a captured machine, and whether this host may restore them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from wardian.isolation.host.substrate import Substrate
from wardian.isolation.port import ImageRefused, MachineImage, MachineSpec

DRIVER_NAME = "gvisor"
FILES = ("kernel.state", "pages.meta", "pages.data")
"""In the order in which the sentry wants their descriptors."""

CHECKPOINT = {
    "key": None,
    "metadata": {"compression": "none"},  # compressing costs ten times what it saves in time
    "MemoryFileSaveOpts": {"ExcludeCommittedZeroPages": False},
    "have_pages_file": True,
    "Resume": True,  # go on by yourself; if we wanted it stopped, we paused it before
}
RESTORE = {"HavePagesFile": True, "HaveDeviceFile": False}


def check_image(image: MachineImage, spec: MachineSpec, substrate: Substrate) -> None:
    """Raise :class:`ImageRefused` unless ``image`` can become a machine of ``spec`` here."""
    if image.driver != DRIVER_NAME:
        raise ImageRefused(f"the image was made by the driver {image.driver!r}, not {DRIVER_NAME!r}")
    if image.build != substrate.build:
        raise ImageRefused(
            f"the image was made by the runsc build {image.build}, this host has {substrate.build}",
            hint="install the runsc it was made with, or start the sandbox afresh",
        )
    if image.root_digest != spec.root.digest:
        raise ImageRefused(f"the image needs the root {image.root_digest}, not {spec.root.digest}")
    missing = sorted(image.cpu_features - substrate.cpu_features)
    if missing:
        raise ImageRefused(f"this CPU lacks {', '.join(missing)}, which the image relies on")
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


@contextmanager
def opened(directory: Path, *, write: bool) -> Iterator[list[int]]:
    """Descriptors of the image files in ``directory``: new and empty ones, or for reading."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL if write else os.O_RDONLY
    fds: list[int] = []
    try:
        for name in FILES:
            fds.append(os.open(directory / name, flags | os.O_CLOEXEC, 0o600))
        yield fds
    finally:
        for fd in fds:
            os.close(fd)


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


__all__ = ["CHECKPOINT", "DRIVER_NAME", "FILES", "RESTORE", "check_image", "describe", "opened"]
