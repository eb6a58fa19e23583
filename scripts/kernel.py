"""Take a kernel's Debian package apart: kernel.py PACKAGE CACHE."""

from __future__ import annotations

import sys
from pathlib import Path

from wardian.isolation.qemu.kernel import extract

if __name__ == "__main__":
    extract(Path(sys.argv[1]), Path(sys.argv[2]))
