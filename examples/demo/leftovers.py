"""What a demo may leave on this host, and must not."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path


def processes_naming(data: Path) -> list[Path]:
    """Every process with ``data`` in its command line, but ourselves."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if str(data).encode() in (process / "cmdline").read_bytes() and int(process.name) != os.getpid():
                found.append(process)
    return found


def leftovers(data: Path, groups: set[str]) -> list[str]:
    """Whatever on this host still belongs to the servers that ran in ``data``."""
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    left = [f"process {process.name}" for process in processes_naming(data)]
    left += [f"machine {path.name}" for path in data.glob("*/machines/*")]
    left += [f"mount {line.split()[4]}" for line in mounts if str(data) in line]
    for path, below, _ in os.walk("/sys/fs/cgroup"):  # where others' come and go meanwhile
        if Path(path).name in groups:
            left += [f"control group {path}/{name}" for name in below]
    return left


def groups_of(data: Path) -> set[str]:
    """The control groups of the machines that run in ``data``, to look for them at the end."""
    found: set[str] = set()
    for process in processes_naming(data):
        with suppress(OSError):
            found |= set(re.findall(r"/(wardian-[0-9a-f]+)", (process / "cgroup").read_text()))
    return found
