"""A foreign image's layers laid over each other: a tree in memory, of which nothing is ever unpacked.

No name, symlink or hard link of a layer can lead to a file of the host: see :mod:`wardian.images.tree`.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from wardian.images import tar
from wardian.images.compose import Composed, lay_layers, write_root
from wardian.images.oci.config import ImageInvalid
from wardian.images.tree import Inode, Span, Tree

MACHINES_OWN = ("dev", "proc", "run", "sys", "tmp")
"""Directories that a machine fills by itself: an image has them, and nothing in them."""

_MACHINES_OWN = tuple(map(os.fsencode, MACHINES_OWN))


class Merged:
    """The files of an image. ``layers`` are plain tars, lowest first; they stay where the contents lie.

    Paths have no leading slash. Raises :class:`ImageInvalid` for layers that are not as they should be.
    """

    def __init__(self, layers: Sequence[Path]) -> None:
        self.tree = Tree()
        self._sources: list[Path] = []
        self.lay_over(layers)

    def lay_over(self, layers: Sequence[Path]) -> None:
        """More layers over these."""
        try:
            lay_layers(self.tree, layers, len(self._sources), fit=_fit)
        except tar.BadArchive as error:
            raise ImageInvalid(f"a layer of the image cannot be taken: {error}") from error
        self._sources += layers

    def resolve(self, path: str) -> tuple[str, Inode | None]:
        """Where ``path`` leads, symlinks followed within the image: see :meth:`Tree.resolve`."""
        try:
            real, inode = self.tree.resolve(os.fsencode(path))
        except tar.BadArchive as error:
            raise ImageInvalid(f"/{path[:200]} in the image leads nowhere: {error}") from error
        return os.fsdecode(real), inode

    def read(self, path: str, most: int = 1 << 20) -> bytes | None:
        """The beginning of a regular file; None where there is none."""
        _, inode = self.resolve(path)
        if inode is None or not stat.S_ISREG(inode.mode):
            return None
        data = b""
        for piece in inode.content:
            data += piece if isinstance(piece, bytes) else self._read(piece, most)
        return data[:most]

    def write(self, out: Path) -> Composed:
        """Write the root image. Raises :class:`~wardian.images.erofs.ImageUnusable`."""
        return write_root(self.tree, self._sources, out)

    def _read(self, span: Span, most: int) -> bytes:
        with self._sources[span.source].open("rb") as file:
            file.seek(span.offset)
            return file.read(min(most, span.size))


def _fit(member: tar.Member) -> tar.Member | None:
    """A member as an image has it; None for devices and the like, which a machine has of its own."""
    names = [name for name in member.path.split(b"/") if name not in (b"", b".")]
    if names and names[0] in _MACHINES_OWN and len(names) > 1:
        return None
    if not (stat.S_ISREG(member.mode) or stat.S_ISDIR(member.mode) or stat.S_ISLNK(member.mode)):
        return None
    link = member.link.lstrip(b"/") if member.hard else member.link
    return replace(member, path=member.path.lstrip(b"/"), link=link)
