"""What a COPY may take from: the files of a tar, or those of another stage's root image.

Both look the same: items by path without a leading slash, and a way to read a file's content. A tar comes
from whoever asked for the build, so it is read strictly; nothing of it is ever unpacked on the host.
"""

from __future__ import annotations

import io
import posixpath
import stat
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Protocol

from wardian.images.erofs import Image, Node
from wardian.model.errors import Invalid

ENTRIES_MAX = 200_000
PATH_MAX = 4095
ID_MAX = (1 << 32) - 2
"""The largest number of a user or a group: the one above it means none."""

BYTES_MAX = 8 << 30
"""Of all the files of one archive."""


@dataclass(frozen=True, slots=True)
class Item:
    """A file, directory or symlink. ``mode`` holds permission bits only; ``target`` is a symlink's."""

    kind: str
    mode: int
    size: int = 0
    target: str = ""
    uid: int = 0
    gid: int = 0


DIRECTORY = Item("directory", 0o755)


class Tree(Protocol):
    """Files to take from."""

    items: Mapping[str, Item]

    def open(self, path: str) -> IO[bytes]:
        """The content of a file."""


class BadArchive(Invalid):
    """An uploaded tar that is none, or holds what a build does not take."""

    code = "bad_archive"


@contextmanager
def archive_tree(path: Path, *, bytes_max: int) -> Iterator[Tree]:
    """The files of a tar (plain or gzip). Raises :class:`BadArchive`."""
    try:
        with tarfile.open(path, "r:*") as tar:
            yield _ArchiveTree(tar, bytes_max)
    except (tarfile.TarError, EOFError, OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the host's disk, not the archive
        raise BadArchive(f"the uploaded files are not a readable tar: {error}") from error


@contextmanager
def image_tree(path: Path) -> Iterator[Tree]:
    """The files of a root image."""
    with Image(path) as image:
        yield _ImageTree(image)


class _ArchiveTree:
    def __init__(self, tar: tarfile.TarFile, bytes_max: int) -> None:
        self._tar = tar
        self._members: dict[str, tarfile.TarInfo] = {}
        items: dict[str, Item] = {}
        total = 0
        for count, member in enumerate(tar, 1):
            path = _inner_path(member.name)
            total += member.size
            if count > ENTRIES_MAX or total > bytes_max:
                raise BadArchive(
                    f"the uploaded files are more than {ENTRIES_MAX} or larger than {bytes_max >> 20} MiB",
                    hint="leave out what is not needed with .dockerignore, or give the template more disk",
                )
            if path:
                items[path] = self._owned(path, member, self._item(path, member, items))
        self.items: Mapping[str, Item] = with_parents(items)

    def _item(self, path: str, member: tarfile.TarInfo, items: Mapping[str, Item]) -> Item:
        mode = member.mode & 0o7777
        if member.isdir():
            return Item("directory", mode)
        if member.issym():
            return Item("symlink", 0o777, target=member.linkname)
        if member.islnk():
            source = _inner_path(member.linkname)
            if source not in self._members:
                raise BadArchive(f"{path!r} is a hard link to {source!r}, which does not come before it")
            self._members[path] = self._members[source]
            return items[source]
        if not member.isreg():
            raise BadArchive(f"{path!r} is neither a file, a directory nor a link")
        self._members[path] = member
        return Item("file", mode, member.size)

    def _owned(self, path: str, member: tarfile.TarInfo, item: Item) -> Item:
        if not (0 <= member.uid <= ID_MAX and 0 <= member.gid <= ID_MAX):
            raise BadArchive(f"{path!r} belongs to {member.uid}:{member.gid}, which nobody can be")
        return replace(item, uid=member.uid, gid=member.gid)

    def open(self, path: str) -> IO[bytes]:
        file = self._tar.extractfile(self._members[path])
        assert file is not None
        return file


class _ImageTree:
    def __init__(self, image: Image) -> None:
        self._image = image
        self._nodes: dict[str, Node] = {}
        items: dict[str, Item] = {}
        for node in image.walk():
            path = node.path.lstrip("/")
            mode = stat.S_IMODE(node.mode)
            if stat.S_ISDIR(node.mode):
                items[path] = Item("directory", mode)
            elif stat.S_ISREG(node.mode):
                items[path] = Item("file", mode, node.size)
            elif stat.S_ISLNK(node.mode):
                target = image.read(node).decode(errors="surrogateescape")
                items[path] = Item("symlink", mode, target=target)
            if path in items:
                items[path] = replace(items[path], uid=node.uid, gid=node.gid)
            self._nodes[path] = node
        items.pop("", None)
        self.items: Mapping[str, Item] = items

    def open(self, path: str) -> IO[bytes]:
        return io.BytesIO(self._image.read(self._nodes[path]))


def with_parents(items: Mapping[str, Item]) -> Mapping[str, Item]:
    """``items`` and the directories above them, sorted; nothing may lie below anything but a directory."""
    whole = dict(items)
    for path in items:
        parent = posixpath.dirname(path)
        while parent and whole.setdefault(parent, DIRECTORY).kind == "directory":
            parent = posixpath.dirname(parent)
        if parent:
            raise BadArchive(f"{path!r} lies below {parent!r}, which is no directory")
    return dict(sorted(whole.items()))


def _inner_path(name: str) -> str:
    """A member's path below the tar's root, without a leading ``./``; never one that leads out of it."""
    if name.startswith("/") or "\0" in name or len(name) > PATH_MAX or ".." in name.split("/"):
        raise BadArchive(f"{name[:100]!r} is not a path inside of the uploaded files")
    path = posixpath.normpath(name)
    return "" if path == "." else path
