"""The Debian packages that a host wants, and why: `make setup` installs them, `wardian doctor` looks.

The set-up script reads this before anything is installed: nothing but the standard library is used.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path


class Need(StrEnum):
    """What cannot be done without a package."""

    SANDBOXES = "run sandboxes"
    MICROVMS = "run microVMs"
    IMAGES = "make images"
    COMPILING = "compile"
    TESTS = "test"
    BENCHMARKS = "benchmark"


@dataclass(frozen=True, slots=True)
class Package:
    """``sign`` is a program on the path, or files by a pattern: when it is there, the package is."""

    sign: str
    why: str
    need: Need

    def found(self) -> str | None:
        """Where its sign is."""
        if self.sign.startswith("/"):
            return next((str(path) for path in sorted(Path("/").glob(self.sign[1:]))), None)
        return shutil.which(self.sign, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")


PACKAGES: Mapping[str, Package] = {
    "bubblewrap": Package("bwrap", "the benchmark's second yardstick", Need.BENCHMARKS),
    "busybox-static": Package("busybox", "foreign images in tests", Need.TESTS),
    "ca-certificates": Package(
        "/etc/ssl/certs/ca-certificates.crt", "reaching package indexes and registries", Need.IMAGES
    ),
    "chromium": Package("chromium", "the browser that looks at a desktop's stream in a test", Need.TESTS),
    "crun": Package("crun", "the benchmark's first yardstick", Need.BENCHMARKS),
    "debian-archive-keyring": Package(
        "/usr/share/keyrings/debian-archive-keyring.gpg", "checking Debian's signatures", Need.IMAGES
    ),
    "e2fsprogs": Package("mkfs.ext4", "bounded disks of sandboxes", Need.SANDBOXES),
    "erofs-utils": Package("mkfs.erofs", "root images", Need.SANDBOXES),
    "gcc": Package("gcc", "the guest agent and the launcher", Need.COMPILING),
    "libc6-dev": Package("/usr/include/stdio.h", "the same", Need.COMPILING),
    "libnss3-tools": Package("certutil", "letting that browser trust an authority of a test", Need.TESTS),
    "make": Package("make", "the same", Need.COMPILING),
    "mmdebstrap": Package("mmdebstrap", "the base image and other Debian bases", Need.IMAGES),
    "postgresql": Package(
        "/usr/lib/postgresql/*/bin/postgres", "the engine of runs on Postgres in tests", Need.TESTS
    ),
    "qemu-system-x86": Package("qemu-system-x86_64", "microVMs, the other kind of sandbox", Need.MICROVMS),
    "runsc": Package("runsc", "gVisor, the sandbox's kernel", Need.SANDBOXES),
    "skopeo": Package("skopeo", "fetching OCI images to build on", Need.IMAGES),
}

FROM_BACKPORTS = ("qemu-system-x86", "runsc")
"""What Debian 12 itself carries in versions that are too old."""


def remedy(*packages: str) -> str:
    """How to get them."""
    release = " -t bookworm-backports" if set(packages) & set(FROM_BACKPORTS) else ""
    return f"make setup, or apt install{release} {' '.join(packages)}"
