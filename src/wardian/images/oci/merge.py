"""Layers laid over each other as a table of files; only then is one tar written, in which nothing is odd.

In that tar every file lies in a directory of the same tar, parents come before children, and links point at
what is there. So unpacking it leads nowhere else, whatever names and symlinks the layers had.
"""

from __future__ import annotations

import stat
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from wardian.images.erofs import TIMESTAMP
from wardian.images.oci.config import ImageInvalid

WHITEOUT, OPAQUE = ".wh.", ".wh..wh..opq"
MACHINES_OWN = ("dev", "proc", "run", "sys", "tmp")
"""Directories that a machine fills by itself: an image has them, and nothing in them."""

ENTRIES_MAX = 2_000_000
HEADER_MAX = 1 << 20
NAME_MAX, PATH_MAX, HOPS_MAX = 255, 4096, 40
IDS = range(1 << 32)


class _Member(tarfile.TarInfo):
    """Extended headers are read into memory whole: those of strangers are bounded."""

    _EXTENDED = (
        tarfile.XHDTYPE,
        tarfile.XGLTYPE,
        tarfile.SOLARIS_XHDTYPE,
        tarfile.GNUTYPE_LONGNAME,
        tarfile.GNUTYPE_LONGLINK,
    )

    def _proc_member(self, tar: tarfile.TarFile) -> tarfile.TarInfo:
        if self.type in self._EXTENDED and self.size > HEADER_MAX:
            raise tarfile.ReadError("a header that is too long")
        found: tarfile.TarInfo = super()._proc_member(tar)  # type: ignore[misc]
        return found


@dataclass(eq=False, slots=True)
class File:
    """What a name leads to; two names of one File are hard links. ``target`` is a symlink's."""

    mode: int
    uid: int = 0
    gid: int = 0
    target: str = ""
    tar: tarfile.TarFile | None = None
    member: tarfile.TarInfo | None = None

    def open(self) -> IO[bytes]:
        """The content of a regular file."""
        assert self.tar is not None and self.member is not None
        content = self.tar.extractfile(self.member)
        assert content is not None
        return content


@dataclass(eq=False, slots=True)
class Node:
    """A file and, of a directory, what is in it."""

    file: File
    children: dict[str, Node] = field(default_factory=dict)

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.file.mode)


def _directory() -> Node:
    return Node(File(stat.S_IFDIR | 0o755))


class Tree:
    """The merged files of an image. A context manager: the layers stay open for their contents."""

    def __init__(self, layers: Sequence[Path]) -> None:
        self.root = _directory()
        self._entries = 0
        self._open = ExitStack()
        try:
            for layer in layers:
                self._lay_over(layer)
        except (tarfile.TarError, EOFError, ValueError, OSError) as error:
            self._open.close()
            raise ImageInvalid(f"a layer of the image is no proper tar: {error}") from error
        except BaseException:
            self._open.close()
            raise

    def __enter__(self) -> Tree:
        return self

    def __exit__(self, *exception: object) -> None:
        self._open.close()

    def resolve(self, path: str) -> tuple[str, Node | None]:
        """Where ``path`` leads, symlinks followed within the image: the real path, and what is there, if
        anything. Missing parts are taken as they are written.
        """
        waiting = [part for part in reversed(path.split("/")) if part]
        walked: list[str] = []
        node: Node | None = self.root
        hops = 0
        while waiting:
            part = waiting.pop()
            if part == ".":
                continue
            if part == "..":
                walked = walked[:-1]
                node = self._at(walked)
                continue
            child = node.children.get(part) if node else None
            if child is not None and stat.S_ISLNK(child.file.mode):
                hops += 1
                if hops > HOPS_MAX:
                    raise ImageInvalid(f"too many symlinks on the way to /{path}")
                target = child.file.target
                waiting += [part for part in reversed(target.split("/")) if part]
                if target.startswith("/"):
                    walked, node = [], self.root
                continue
            walked.append(part)
            node = child
        return "/".join(walked), node

    def read(self, path: str, most: int = 1 << 20) -> bytes | None:
        """The beginning of a regular file; None where there is none."""
        _, node = self.resolve(path)
        if node is None or not stat.S_ISREG(node.file.mode):
            return None
        with node.file.open() as content:
            return content.read(most)

    def walk(self) -> Iterator[tuple[str, Node]]:
        """Every path but the root's, parents first, sorted."""
        pending = [("", self.root)]
        while pending:
            path, node = pending.pop()
            if path:
                yield path, node
            base = f"{path}/" if path else ""
            pending += [(base + name, node.children[name]) for name in sorted(node.children, reverse=True)]

    def write(self, out: Path) -> None:
        """Write all files as one tar."""
        first: dict[File, str] = {}
        with tarfile.open(out, "w", format=tarfile.PAX_FORMAT) as tar:
            for path, node in self.walk():
                file = node.file
                info = tarfile.TarInfo(path)
                info.mode, info.uid, info.gid, info.mtime = file.mode & 0o7777, file.uid, file.gid, TIMESTAMP
                if node.is_directory:
                    info.type = tarfile.DIRTYPE
                    tar.addfile(info)
                elif earlier := first.get(file):
                    info.type, info.linkname = tarfile.LNKTYPE, earlier
                    tar.addfile(info)
                elif stat.S_ISLNK(file.mode):
                    info.type, info.linkname = tarfile.SYMTYPE, file.target
                    tar.addfile(info)
                else:
                    first[file] = path
                    assert file.member is not None
                    info.size = file.member.size
                    with file.open() as content:
                        tar.addfile(info, content)

    def _lay_over(self, layer: Path) -> None:
        tar = self._open.enter_context(tarfile.open(layer, "r:", tarinfo=_Member, errors="surrogateescape"))
        members: list[tuple[list[str], tarfile.TarInfo]] = []
        for member in tar:
            self._entries += 1
            if self._entries > ENTRIES_MAX:
                raise ImageInvalid(f"the image has more than {ENTRIES_MAX} entries", code="image_too_large")
            parts = _parts(member.name)
            if parts and parts[-1].startswith(WHITEOUT):
                self._remove(parts)  # what lower layers had: this one's own files come afterwards
            else:
                members.append((parts, member))
        for parts, member in members:
            self._add(parts, member, tar)

    def _remove(self, parts: list[str]) -> None:
        above = self._at(parts[:-1])
        if above is None:
            return
        if parts[-1] == OPAQUE:
            above.children.clear()
        else:
            above.children.pop(parts[-1].removeprefix(WHITEOUT), None)

    def _add(self, parts: list[str], member: tarfile.TarInfo, tar: tarfile.TarFile) -> None:
        if parts[:1] and parts[0] in MACHINES_OWN and len(parts) > 1:
            return
        file = self._file(member, tar)
        if file is None:
            return
        if not parts:
            if member.isdir():
                self.root.file = file
            return
        above = self._make_directory(parts[:-1])
        known = above.children.get(parts[-1])
        if known is not None and known.is_directory and member.isdir():
            known.file = file
        else:
            above.children[parts[-1]] = Node(file)

    def _file(self, member: tarfile.TarInfo, tar: tarfile.TarFile) -> File | None:
        """What a member brings; None for devices and the like, which a machine has of its own."""
        if member.uid not in IDS or member.gid not in IDS:
            raise ImageInvalid(f"{member.name[:100]!r} belongs to nobody possible")
        mode = member.mode & 0o7777
        if member.isdir():
            return File(stat.S_IFDIR | mode, member.uid, member.gid)
        if member.issym():
            if not 0 < len(member.linkname) < PATH_MAX or "\0" in member.linkname:
                raise ImageInvalid(f"{member.name[:100]!r} is a symlink to nothing possible")
            return File(stat.S_IFLNK | 0o777, member.uid, member.gid, target=member.linkname)
        if member.islnk():
            node = self._at(_parts(member.linkname))
            if node is None or node.is_directory:
                raise ImageInvalid(f"{member.name[:100]!r} is linked to what is not there")
            return node.file
        if member.issparse():
            raise ImageInvalid(f"{member.name[:100]!r} is a sparse file, which layers do not hold")
        if member.isreg():
            return File(stat.S_IFREG | mode, member.uid, member.gid, tar=tar, member=member)
        return None

    def _at(self, parts: Sequence[str]) -> Node | None:
        node: Node | None = self.root
        for part in parts:
            node = node.children.get(part) if node else None
        return node

    def _make_directory(self, parts: Sequence[str]) -> Node:
        """The directory of that path, symlinks followed; made if it is missing, as unpacking would."""
        found = self._at(parts)
        if found is not None and found.is_directory:
            return found
        real, _ = self.resolve("/".join(parts))
        node = self.root
        for part in _parts(real):
            node = node.children.setdefault(part, _directory())
            if not node.is_directory:
                raise ImageInvalid(f"/{real[:200]} is no directory, and something lies in it")
        return node


def _parts(name: str) -> list[str]:
    """The parts of a member's name. Raises :class:`ImageInvalid` for one that would lead elsewhere."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    too_long = len(name) > PATH_MAX or any(
        len(part.encode(errors="surrogateescape")) > NAME_MAX for part in parts
    )
    if ".." in parts or "\0" in name or too_long:
        raise ImageInvalid(f"{name[:100]!r} is no path in an image")
    return parts
