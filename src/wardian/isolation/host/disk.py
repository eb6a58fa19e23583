"""The bounded disk of a machine: a sparse ext4 image without a journal, one per machine.

A guest with a Linux kernel mounts it itself. What a guest of gVisor writes goes to one file on that image,
which only the machine's launcher mounts, in a mount namespace of its own, on a loop device that clears
itself: when the sentry dies, so do file system and device, whatever happened to us. The image file is in the
machine's directory and goes with it. Making a file system takes a process and ~15 ms, so it is done once per
size; a machine gets a sparse copy of a few hundred kilobytes.
"""

from __future__ import annotations

import asyncio
import errno
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from wardian.model.errors import Kind, WardianError

_MKFS = (
    "mke2fs",
    "-q",
    "-F",
    "-t",
    "ext4",
    "-b",
    "4096",
    "-m",
    "0",
    "-I",
    "256",
    "-E",
    "lazy_itable_init=1,nodiscard",
)


@dataclass(frozen=True, slots=True)
class DiskKind:
    """How disks are formatted. What the file system needs itself is on top of a disk's size:
    ``overhead_mib``, and this share of it."""

    name: str
    options: tuple[str, ...]
    overhead_mib: int = 4  # group descriptors, bitmaps and inodes
    overhead_share: float = 0.0


ONE_FILE = DiskKind("ext4", ("-N", "16", "-O", "^has_journal,^resize_inode,^dir_index,^metadata_csum"))
"""For gVisor, which keeps everything in one file."""

MANY_FILES = DiskKind("ext4-files", ("-i", "16384", "-O", "^has_journal,^resize_inode"), overhead_share=0.02)
"""For a guest that mounts the disk itself."""


class DiskError(WardianError):
    """No disk of bounded size can be made here."""

    kind, code = Kind.UNAVAILABLE, "disk_unavailable"


class DiskTemplates:
    """Empty file systems by size, kept in ``directory``."""

    def __init__(self, directory: Path, kind: DiskKind = ONE_FILE) -> None:
        self._directory = directory
        self._kind = kind
        self._turn = asyncio.Lock()

    async def make(self, size_mib: int, to: Path) -> None:
        """Write a new image of a disk of ``size_mib`` to the path ``to``."""
        template = self._directory / f"{self._kind.name}-{size_mib}.img"
        async with self._turn:
            if not template.exists():
                await self._format(size_mib, template)
        copy_sparse(template, to)

    async def _format(self, size_mib: int, template: Path) -> None:
        self._directory.mkdir(parents=True, exist_ok=True)
        draft = template.with_name(f"{template.name}.{os.getpid()}.draft")
        try:
            with draft.open("wb") as file:
                overhead = self._kind.overhead_mib + int(size_mib * self._kind.overhead_share)
                file.truncate((size_mib + overhead) << 20)
            process = await asyncio.create_subprocess_exec(
                *_MKFS, *self._kind.options, str(draft),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
            )  # fmt: skip
            _, said = await process.communicate()
            if process.returncode:
                raise DiskError(f"mke2fs failed: {said.decode(errors='replace').strip()}")
            draft.rename(template)
        except FileNotFoundError as error:
            raise DiskError("mke2fs is missing", hint="apt-get install e2fsprogs") from error
        finally:
            draft.unlink(missing_ok=True)


def copy_sparse(source: Path, target: Path) -> None:
    """Copy the data of ``source`` to a new file, leaving its holes out."""
    target_fd = os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        copy_sparse_to(source, target_fd)
    finally:
        os.close(target_fd)


def copy_sparse_to(source: Path, target_fd: int) -> None:
    """Copy the data of ``source`` to an empty file, leaving its holes out."""
    source_fd = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size = os.fstat(source_fd).st_size
        os.ftruncate(target_fd, size)
        at = 0
        with suppress(_NoMoreData):
            while at < size:
                at = _seek_data(source_fd, at)
                end = os.lseek(source_fd, at, os.SEEK_HOLE)
                while at < end:
                    at += os.copy_file_range(source_fd, target_fd, end - at, at, at)
    finally:
        os.close(source_fd)


class _NoMoreData(Exception):
    pass


def _seek_data(fd: int, at: int) -> int:
    try:
        return os.lseek(fd, at, os.SEEK_DATA)
    except OSError as error:
        if error.errno == errno.ENXIO:
            raise _NoMoreData from None
        raise


__all__ = [
    "MANY_FILES",
    "ONE_FILE",
    "DiskError",
    "DiskKind",
    "DiskTemplates",
    "copy_sparse",
    "copy_sparse_to",
]
