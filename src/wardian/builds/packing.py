"""The files beside a manifest: which of them a COPY means, and the tar that goes to the server.

The tar is canonical: sorted, without owners and times, so the same files always have the same digest.
Nothing outside of the directory is ever read: a symlink is packed as one.
"""

from __future__ import annotations

import io
import os
import posixpath
import re
import stat
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import file_digest
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol

from wardian.builds.ignore import Ignore
from wardian.builds.patterns import BadPattern, translate
from wardian.builds.trees import BYTES_MAX, ENTRIES_MAX, BadArchive, Tree, archive_tree
from wardian.images.erofs import TIMESTAMP
from wardian.model.errors import Invalid

_MAGIC = re.compile(r"[*?\[\\]")


class Unpackable(Invalid):
    """Files that a COPY names and that cannot be sent: missing, outside, or of an odd kind."""

    code = "bad_copy_source"


@dataclass(frozen=True, slots=True)
class Packed:
    """A tar: ``reference`` is ``context:<sha256>``, ``single`` the one file in it, or "." for all."""

    reference: str
    single: str = "."


class Files(Protocol):
    """What a parser asks of the directory it is in."""

    def pack(self, sources: Sequence[str]) -> Packed:
        """The files that ``sources`` name, laid out as COPY places them: a directory's content and files
        themselves at the top. Raises :class:`Unpackable`."""

    def pack_text(self, texts: Mapping[str, str]) -> Packed:
        """The same, of files made up by the manifest, by name."""

    def expand(self, source: str) -> Sequence[str]:
        """The files and directories that ``source`` names, each as a source of its own; itself, if none."""

    def is_archive(self, source: str) -> bool:
        """Whether ``source`` is a tar, compressed or not."""

    def unpack(self, source: str) -> Packed:
        """What is in the tar ``source``, owners and all. Raises :class:`Unpackable`."""

    def read(self, name: str) -> str | None:
        """The text of a file, or None when there is none. Raises :class:`Unpackable`."""


@dataclass(slots=True)
class Folder:
    """The directory of a manifest. ``archives`` maps the digest of each tar made so far to its path."""

    directory: Path
    ignore: Ignore
    _scratch: TemporaryDirectory[str] = field(default_factory=lambda: TemporaryDirectory("-wardian-files"))
    archives: dict[str, Path] = field(default_factory=dict)

    def close(self) -> None:
        """Remove the tars."""
        self._scratch.cleanup()

    def pack(self, sources: Sequence[str]) -> Packed:
        placed: dict[str, Path] = {}
        for source in sources:
            placed |= dict(self._named(source))
        if not placed:
            raise Unpackable(f"nothing is left to copy of {' '.join(sources)}: .dockerignore excludes it all")
        only = next(iter(placed)) if len(placed) == 1 else ""
        brings_directory = len(sources) == 1 and self._is_directory(sources[0])
        single = only if only and "/" not in only and not brings_directory else "."
        return Packed(self._write(lambda tar: self._add(tar, placed)), single)

    def pack_text(self, texts: Mapping[str, str]) -> Packed:
        def add(tar: tarfile.TarFile) -> None:
            for name, text in sorted(texts.items()):
                data = text.encode()
                info = _bare(name, 0o644)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))

        return Packed(self._write(add), next(iter(texts)) if len(texts) == 1 else ".")

    def expand(self, source: str) -> Sequence[str]:
        found = list(self._matching(_inside(source))) if _MAGIC.search(source) else []
        return [_MAGIC.sub(r"\\\g<0>", path) for path in found] or [source]

    def is_archive(self, source: str) -> bool:
        path = self._literal(source)
        return path.is_file() and not path.is_symlink() and tarfile.is_tarfile(path)

    def unpack(self, source: str) -> Packed:
        ((_, path),) = self._named(source)  # or it is excluded, or lies behind a symlink
        try:
            with archive_tree(path, bytes_max=BYTES_MAX) as tree:
                return Packed(self._write(lambda tar: _add_items(tar, tree)))
        except BadArchive as error:
            raise Unpackable(f"{source} cannot be unpacked: {error.message}") from None

    def _literal(self, source: str) -> Path:
        """The place of a source that is no pattern, or an escaped one."""
        return self.directory / re.sub(r"\\(.)", r"\1", _inside(source))

    def _is_directory(self, source: str) -> bool:
        path = self.directory / _inside(source)
        return path.is_dir() and not path.is_symlink()

    def read(self, name: str) -> str | None:
        path = self.directory / _inside(name)
        try:
            return path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        except (UnicodeDecodeError, OSError) as error:
            raise Unpackable(f"{name} cannot be read as text: {error}") from None

    def _named(self, source: str) -> Iterator[tuple[str, Path]]:
        """The names in the tar, and the files, that one source of a COPY means."""
        relative = _inside(source)
        matches = [relative] if not _MAGIC.search(relative) else list(self._matching(relative))
        found = False
        for match in matches:
            path = self.directory / match
            if not path.is_symlink() and not path.exists():
                continue
            if self._is_behind_symlink(path):
                raise Unpackable(f"{match} lies behind a symlink; name the place it leads to instead")
            if path.is_dir() and not path.is_symlink():
                found = True
                yield from self._below(match)
            elif not self.ignore.excludes(match):
                found = True
                yield posixpath.basename(match), path
        if not found:
            raise Unpackable(
                f"there is no {source!r} in {self.directory}, or .dockerignore excludes it",
                hint="the sources of a COPY are relative to the manifest's directory",
            )

    def _is_behind_symlink(self, path: Path) -> bool:
        above = [parent for parent in path.parents if parent != self.directory]
        return any(parent.is_symlink() for parent in above if parent.is_relative_to(self.directory))

    def _matching(self, pattern: str) -> Iterator[str]:
        try:
            wanted = re.compile(translate(pattern))
        except (BadPattern, re.error) as error:
            raise Unpackable(f"{pattern!r}: {error}") from None
        depth = None if "**" in pattern else pattern.count("/") + 1
        for path in sorted(self._walk("", depth)):
            if wanted.fullmatch(path) and not self.ignore.excludes(path):
                yield path

    def _below(self, directory: str) -> Iterator[tuple[str, Path]]:
        prefix = "" if directory == "" else directory + "/"
        for path in self._walk(directory, None):
            if not self.ignore.excludes(path):
                yield path[len(prefix) :], self.directory / path

    def _walk(self, directory: str, depth: int | None) -> Iterator[str]:
        """Every path below ``directory``, but for what an excluded directory holds for good."""
        if depth == 0:
            return
        try:
            with os.scandir(self.directory / directory) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            raise Unpackable(f"{directory or self.directory} cannot be read: {error.strerror}") from None
        for entry in found:
            path = posixpath.join(directory, entry.name)
            yield path
            if entry.is_dir(follow_symlinks=False):
                if self.ignore.excludes(path) and not self.ignore.has_exceptions:
                    continue
                yield from self._walk(path, None if depth is None else depth - 1)

    def _write(self, add: Callable[[tarfile.TarFile], None]) -> str:
        draft = Path(self._scratch.name) / "draft"
        with tarfile.open(draft, "w", format=tarfile.PAX_FORMAT) as tar:
            add(tar)
        with draft.open("rb") as file:
            digest = file_digest(file, "sha256").hexdigest()
        self.archives[digest] = draft.rename(draft.with_name(f"{digest}.tar"))
        return f"context:{digest}"

    def _add(self, tar: tarfile.TarFile, placed: Mapping[str, Path]) -> None:
        if len(placed) > ENTRIES_MAX:
            raise Unpackable(f"more than {ENTRIES_MAX} files", hint="exclude some with .dockerignore")
        for name, path in sorted(placed.items()):
            facts = path.lstat()
            info = _bare(name, stat.S_IMODE(facts.st_mode))
            if stat.S_ISLNK(facts.st_mode):
                info.type, info.linkname, info.mode = tarfile.SYMTYPE, os.readlink(path), 0o777
                tar.addfile(info)
            elif stat.S_ISDIR(facts.st_mode):
                info.type = tarfile.DIRTYPE
                tar.addfile(info)
            elif stat.S_ISREG(facts.st_mode):
                info.size = facts.st_size
                with path.open("rb") as content:
                    tar.addfile(info, content)
            else:
                raise Unpackable(f"{name} is neither a file, a directory nor a symlink")


def _add_items(tar: tarfile.TarFile, tree: Tree) -> None:
    """Another archive's files, as they are there."""
    for name, item in tree.items.items():
        info = _bare(name, 0)
        info.mode, info.uid, info.gid = item.mode, item.uid, item.gid
        if item.kind == "directory":
            info.type = tarfile.DIRTYPE
            tar.addfile(info)
        elif item.kind == "symlink":
            info.type, info.linkname = tarfile.SYMTYPE, item.target
            tar.addfile(info)
        else:
            info.size = item.size
            with tree.open(name) as content:
                tar.addfile(info, content)


def _bare(name: str, mode: int) -> tarfile.TarInfo:
    """A tar entry without an owner, a time, or the right of others to write (the umask's doing)."""
    info = tarfile.TarInfo(name)
    info.mode = mode & 0o7755
    info.mtime = TIMESTAMP
    return info


def _inside(source: str) -> str:
    """A source as a path below the directory. Raises :class:`Unpackable` for one that leads out of it."""
    path = posixpath.normpath(source.lstrip("/") or ".")
    if path.startswith("../") or path == "..":
        raise Unpackable(f"{source!r} leads out of the manifest's directory")
    if "\0" in path:
        raise Unpackable(f"{source!r} is no path")
    return "" if path == "." else path
