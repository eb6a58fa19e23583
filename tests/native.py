"""The native programs, as the sources are now."""

from __future__ import annotations

import fcntl
import os
import subprocess
from pathlib import Path


def make(directory: Path, *goals: str) -> None:
    """Build what changed. One at a time: other workers of this run want the same files."""
    here = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(here, fcntl.LOCK_EX)
        subprocess.run(["make", "--silent", *goals], cwd=directory, check=True)
    finally:
        os.close(here)
