"""What machines stand on: one build of what runs them, on one CPU."""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Substrate:
    """What a machine stands on: one build of runsc or QEMU on one CPU. ``build`` is what a snapshot and the
    machine restoring it must share."""

    version: str
    build: str
    cpu_features: frozenset[str]


def cpu_features(cpuinfo: str) -> frozenset[str]:
    """The feature flags that every CPU of ``/proc/cpuinfo`` has."""
    flags = [
        frozenset(line.partition(":")[2].split()) for line in cpuinfo.splitlines() if line.startswith("flags")
    ]
    return frozenset.intersection(*flags) if flags else frozenset()


def file_identity(path: Path) -> tuple[int, ...] | None:
    """What changes when a file is replaced or rewritten; None if there is none."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns


@functools.cache
def this_cpu() -> frozenset[str]:
    """The features of the CPUs here."""
    return cpu_features(Path("/proc/cpuinfo").read_text())


def digest_of(path: Path) -> str:
    """The SHA-256 of a file, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


__all__ = ["Substrate", "cpu_features", "digest_of", "file_identity", "this_cpu"]
