"""Make what Firecracker's machines boot, from a kernel's Debian package: firecracker.py PACKAGE DIRECTORY.

``DIRECTORY`` gets ``vmlinux`` and ``initrd``; ``firecracker`` and ``jailer`` of one release belong there too.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

from wardian.config import REPOSITORY
from wardian.isolation.qemu.initramfs import initramfs
from wardian.isolation.qemu.kernel import MODULES, VSOCK, extract


def main(package: Path, to: Path) -> None:
    programs = REPOSITORY / "guest/build"
    to.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        kernel = extract(package, Path(scratch), (*MODULES, VSOCK))
        shutil.copy(kernel.image, to / "vmlinux")
        archive = initramfs(programs / "wardian-init", programs / "wardian-guest", kernel.modules)
        (to / "initrd").write_bytes(archive)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
