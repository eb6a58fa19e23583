"""All that QEMU sees of the host's files: itself, its libraries and its firmware, read-only.

One directory per build, of hard links (or copies, where the host's file system is another), so that a host
may upgrade its QEMU under machines that run.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from wardian.model.errors import Kind, WardianError

PROGRAM, FIRMWARE = "qemu", "firmware"
_LIBRARY = re.compile(r"(/\S+) \(0x[0-9a-f]+\)")


class JailError(WardianError):
    """What QEMU needs cannot be put together."""

    kind, code = Kind.UNAVAILABLE, "qemu_jail"


def make_jail(qemu: Path, firmware: Path, jail: Path) -> Path:
    """Make the directory ``jail``, unless it is there."""
    if jail.exists():
        return jail
    jail.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=jail.parent) as work:
        draft = Path(work, "jail")
        (draft / "proc").mkdir(parents=True)
        _place(qemu, draft / PROGRAM)
        _place(firmware, draft / FIRMWARE)
        for library in _libraries(qemu):
            _place(library, draft / str(library)[1:])
        draft.chmod(0o755)
        if not jail.exists():
            draft.rename(jail)
    return jail


def _libraries(program: Path) -> list[Path]:
    listed = subprocess.run(["ldd", str(program)], capture_output=True, text=True, check=False)
    if listed.returncode:
        raise JailError(f"the libraries of {program} are not to be found: {listed.stderr.strip()}")
    return [Path(found[1]) for line in listed.stdout.splitlines() if (found := _LIBRARY.search(line))]


def _place(file: Path, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    source = file.resolve()
    try:
        os.link(source, to)
    except OSError:
        shutil.copy2(source, to)


__all__ = ["FIRMWARE", "PROGRAM", "JailError", "make_jail"]
