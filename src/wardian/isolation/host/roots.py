"""A look at a root image before it is booted: what an EROFS file says of itself, and what Linux can mount."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from wardian.model.errors import Kind, WardianError

_AT, _MAGIC = 1024, 0xE0F5E1E2
_FIELDS = struct.Struct("<IIIBBH24xI")
_PAGE = 4096


class RootUnusable(WardianError):
    """The root image cannot be booted."""

    kind, code = Kind.INVALID, "root_unusable"


@dataclass(frozen=True, slots=True)
class Superblock:
    """Sizes and places in bytes; ``root`` is the number of the topmost directory's inode."""

    block_size: int
    root: int
    meta_at: int

    @classmethod
    def read(cls, file: BinaryIO, path: Path) -> Superblock:
        """What is in ``file``, which is called ``path``. Raises :class:`RootUnusable` if it is no EROFS."""
        file.seek(_AT)
        magic, _, _, bits, _, root, meta = _FIELDS.unpack(file.read(_FIELDS.size).ljust(_FIELDS.size, b"\0"))
        if magic != _MAGIC:
            raise RootUnusable(f"{path} is no EROFS image", hint="build the template again")
        return cls(1 << bits, root, meta << bits)


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """The image, to be looked at. What is wrong with reading it is :class:`RootUnusable`, with the reason."""
    try:
        with path.open("rb") as file:
            yield file
    except (OSError, OverflowError, ValueError, struct.error) as error:
        raise RootUnusable(f"the root image {path} cannot be read: {error}") from error


def check_for_linux(path: Path) -> None:
    """Raise :class:`RootUnusable` unless a Linux kernel can mount ``path``."""
    with opened(path) as file:
        block_size = Superblock.read(file, path).block_size
    if block_size > _PAGE:
        raise RootUnusable(
            f"{path} is laid out in blocks of {block_size} bytes, which Linux cannot read: "
            "it has directories with many names of over 200 bytes",
            hint="ask for isolation gvisor, or shorten those names",
        )


__all__ = ["RootUnusable", "Superblock", "check_for_linux", "opened"]
