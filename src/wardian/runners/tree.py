"""The tree of a release: directories and files, sorted, and one digest of them all.

The digest is the SHA-256 of a line for each entry below the root, sorted by path as bytes:
``<mode, octal> <size> <SHA-256 of the bytes, or -> <path>\\n``. Whoever sees the tree can work it out again,
which is what a sandbox is asked to do before it gets the release. Modes are made alike: a file can be read,
and perhaps executed, by all; nobody may write.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from wardian.runners.manifest import FILE, BadRunner, Manifest, parse

ENTRIES_MAX = 4096
TREE_BYTES_MAX = 24 << 20
FILE_BYTES_MAX = 16 << 20
PATH_BYTES_MAX, NAME_BYTES_MAX, DEPTH_MAX = 1024, 255, 32
LINE_BYTES_MAX = 256
LEFT_OUT = frozenset({"__pycache__", ".git"})
"""Names of directories that are not released: what they hold was not written by anybody."""
NATIVE = re.compile(r".+\.(so(\.[0-9]+)*|node)")
ELF = b"\x7fELF"

DIRECTORY, PLAIN, PROGRAM = stat.S_IFDIR | 0o555, stat.S_IFREG | 0o444, stat.S_IFREG | 0o555


@dataclass(frozen=True, slots=True)
class Entry:
    """One directory or file. ``mode`` has the type; ``digest`` is empty for a directory."""

    path: str
    mode: int
    size: int = 0
    digest: str = ""

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.mode)


@dataclass(frozen=True, slots=True)
class Tree:
    """Entries, sorted, with the bytes of their files."""

    entries: tuple[Entry, ...]
    contents: Mapping[str, bytes]
    manifest: Manifest

    @property
    def digest(self) -> str:
        return digest_of(self.entries)

    @property
    def size(self) -> int:
        return sum(each.size for each in self.entries)


def digest_of(entries: Iterable[Entry]) -> str:
    """64 hex digits; see above."""
    lines = (f"{each.mode:o} {each.size} {each.digest or '-'} {each.path}\n" for each in entries)
    return sha256("".join(lines).encode()).hexdigest()


def tree_of(files: Mapping[str, tuple[bool, bytes]], directories: Iterable[str] = ()) -> Tree:
    """A tree of files, each executable or not, by path. Raises :class:`BadRunner` for one that is out of
    bounds, or that its manifest does not fit."""
    found: dict[str, Entry] = {}
    for path, (program, content) in files.items():
        _check_path(path)
        if len(content) > FILE_BYTES_MAX:
            raise BadRunner(f"{path} is larger than {FILE_BYTES_MAX >> 20} MiB", code="runner_too_big")
        mode = PROGRAM if program else PLAIN
        found[path] = Entry(path, mode, len(content), sha256(content).hexdigest())
    for path in (*directories, *files):
        parts = path.split("/")
        above = parts if path not in files else parts[:-1]
        for depth in range(1, len(above) + 1):
            name = "/".join(above[:depth])
            _check_path(name)
            if not found.setdefault(name, Entry(name, DIRECTORY)).is_directory:
                raise BadRunner(f"{name} is a file and a directory", code="bad_path")
    check_bounds(len(found), sum(each.size for each in found.values()))
    if FILE not in files:
        raise BadRunner(f"there is no {FILE}", code="no_manifest", hint="docs/runners.md says what is in it")
    manifest = parse(files[FILE][1])
    entries = tuple(found[path] for path in sorted(found, key=os.fsencode))
    tree = Tree(entries, {path: content for path, (_, content) in files.items()}, manifest)
    _check_commands(tree, found)
    _check_native(tree)
    return tree


def read_directory(root: Path) -> Tree:
    """The tree below a directory of this host. Raises :class:`BadRunner` for what cannot be released."""
    files: dict[str, tuple[bool, bytes]] = {}
    directories: list[str] = []
    total = 0
    try:
        for place, names, found in os.walk(root, onerror=_raise):
            names[:] = sorted(set(names) - LEFT_OUT)
            for name in (*names, *found):
                path = Path(place, name)
                shown = path.relative_to(root).as_posix()
                status = path.lstat()
                check_kind(shown, status.st_mode)
                if stat.S_ISDIR(status.st_mode):
                    directories.append(shown)
                    continue
                total += status.st_size
                check_bounds(len(files) + len(directories) + 1, total)
                files[shown] = bool(status.st_mode & 0o111), path.read_bytes()
    except OSError as error:
        raise BadRunner(f"{root} cannot be read: {error}") from error
    return tree_of(files, directories)


def check_kind(path: str, mode: int) -> None:
    """Raise :class:`BadRunner` unless ``mode`` is of a plain file or a directory, without set-id bits."""
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise BadRunner(
            f"{path[:128]} is a link, a device, a pipe or a socket",
            code="bad_entry_kind",
            hint="a release has plain files and directories",
        )
    if mode & (stat.S_ISUID | stat.S_ISGID) and stat.S_ISREG(mode):
        raise BadRunner(f"{path[:128]} has a set-user-id or set-group-id bit", code="bad_entry_kind")


def check_bounds(entries: int, size: int) -> None:
    if entries > ENTRIES_MAX:
        raise BadRunner(f"more than {ENTRIES_MAX} files and directories", code="runner_too_big")
    if size > TREE_BYTES_MAX:
        raise BadRunner(f"more than {TREE_BYTES_MAX >> 20} MiB of files", code="runner_too_big")


def _check_path(path: str) -> None:
    parts = path.split("/")
    bad = (
        len(path.encode(errors="replace")) > PATH_BYTES_MAX
        or len(parts) > DEPTH_MAX
        or any(part in ("", ".", "..") or len(part.encode()) > NAME_BYTES_MAX for part in parts)
        or not path.isprintable()
    )
    if bad:
        raise BadRunner(f"{path[:128]!r} is no path within a release", code="bad_path")


def _check_commands(tree: Tree, found: Mapping[str, Entry]) -> None:
    for key, words in (("start", tree.manifest.start), ("self_test", tree.manifest.self_test)):
        first = found.get(words[0])
        if first is None or first.is_directory:
            raise BadRunner(
                f"{FILE}: {key} begins with {words[0][:128]!r}, which is no file of the release",
                hint="its first word is a file, by its path in the directory",
            )
        if tree.manifest.language == "any" and not interpreter_of(tree.contents[words[0]][:LINE_BYTES_MAX]):
            raise BadRunner(
                f"{FILE}: {key}: {words[0][:128]!r} is no script that names its interpreter (#!/bin/bash)",
                hint="machines execute nothing from a release; let a script copy a program and run that",
            )


def _check_native(tree: Tree) -> None:
    """A release that cannot load is refused here, not when a run of the night begins with it."""
    if tree.manifest.native:
        return
    for path, content in tree.contents.items():
        if NATIVE.fullmatch(path) and content.startswith(ELF):
            raise BadRunner(
                f"{path[:128]} is a native extension, which gVisor maps from no release",
                code="native_extension",
                hint="install it in the environment. If all agents of this runner are behind microVMs, or it "
                f"copies the file before it loads it: `native = true` in {FILE}",
            )


def interpreter_of(beginning: bytes) -> tuple[str, ...]:
    """What a script's first line names: a program and perhaps one argument. Nothing: it is no script."""
    line = beginning.partition(b"\n")[0]
    if not line.startswith(b"#!/") or b"\0" in line:
        return ()
    return tuple(line[2:].decode(errors="replace").split(maxsplit=1))


def _raise(error: OSError) -> None:
    raise error


__all__ = [
    "Entry",
    "Tree",
    "check_bounds",
    "check_kind",
    "digest_of",
    "interpreter_of",
    "read_directory",
    "tree_of",
]
