"""The files of a captured machine, and whether this host may restore them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from wardian.isolation.host.images import ImageKind

DRIVER_NAME = "gvisor"
FILES = ("kernel.state", "pages.meta", "pages.data")
"""In the order in which the sentry wants their descriptors."""

KIND = ImageKind(DRIVER_NAME, FILES, program="runsc", install="runsc", same_resources=False)

CHECKPOINT = {
    "key": None,
    "metadata": {"compression": "none"},  # compressing costs ten times what it saves in time
    "MemoryFileSaveOpts": {"ExcludeCommittedZeroPages": False},
    "have_pages_file": True,
    "Resume": True,  # go on by yourself; if we wanted it stopped, we paused it before
}
RESTORE = {"HavePagesFile": True, "HaveDeviceFile": False}


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


__all__ = ["CHECKPOINT", "DRIVER_NAME", "FILES", "KIND", "RESTORE", "opened"]
