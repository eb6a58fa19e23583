"""The first file system of a machine: our init, the agent and the modules, as a plain cpio archive."""

from __future__ import annotations

import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

DIRECTORIES = ("dev", "proc", "sys", "lower", "disk", "new", "modules")
CONSOLE = (5, 1)


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry: ``mode`` with type bits, ``device`` (major, minor) of a node."""

    name: str
    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


def cpio(entries: Iterable[Entry]) -> bytes:
    """The archive (newc) of these entries, all root's and without a date."""
    archive = bytearray()
    for number, entry in enumerate((*entries, Entry("TRAILER!!!", 0)), start=1):
        name = entry.name.encode() + b"\0"
        fields = (number, entry.mode, 0, 0, 1, 0, len(entry.data), 0, 0, *entry.device, len(name), 0)
        for part in (b"070701" + b"".join(b"%08X" % field for field in fields) + name, entry.data):
            archive += part
            archive += bytes(-len(archive) % 4)
    return bytes(archive)


def initramfs(init: Path, agent: Path, modules: Iterable[Path]) -> bytes:
    """The archive that a machine boots with."""
    return cpio(_entries(init, agent, modules))


def _entries(init: Path, agent: Path, modules: Iterable[Path]) -> Iterator[Entry]:
    for name in DIRECTORIES:
        yield Entry(name, stat.S_IFDIR | 0o755)
    yield Entry("dev/console", stat.S_IFCHR | 0o600, device=CONSOLE)
    yield Entry("init", stat.S_IFREG | 0o755, init.read_bytes())
    yield Entry("agent", stat.S_IFREG | 0o755, agent.read_bytes())
    for module in modules:
        yield Entry(f"modules/{module.name}", stat.S_IFREG | 0o644, module.read_bytes())


__all__ = ["Entry", "cpio", "initramfs"]
