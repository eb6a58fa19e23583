"""A root image out of another and layers upon it.

The files are merged as a table first, in which everything must lie in a directory; only then is an empty tree
filled from it. So no name in a layer, and no symlink, can lead out of that tree.
"""

from __future__ import annotations

import os
import posixpath
import re
import stat
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from hashlib import file_digest
from pathlib import Path

from wardian.images import erofs
from wardian.images.erofs import Image
from wardian.model.errors import Invalid

WHITEOUT = ".wh."
PATH_MAX = 4095
Read = Callable[[], bytes]


@dataclass(frozen=True, slots=True)
class Composed:
    """An image: ``digest`` of the file, ``tree`` of the files in it (``sha256:<hex>`` both)."""

    digest: str
    tree: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Clean:
    """What is left out of an image: files that only say when and how it was made, and caches."""

    patterns: Sequence[str] = (
        r"var/lib/apt/lists/.+",
        r"var/cache/apt/.+",
        r"var/cache/debconf/.+-old",
        r"var/cache/ldconfig/.+",
        r"var/lib/dpkg/.+-old",
        r"var/log/.+\.log|var/log/(?:apt|journal)/.+|var/log/(?:lastlog|faillog|wtmp|btmp|dpkg.*)",
        r"etc/(?:passwd|group|shadow|gshadow|subuid|subgid)-",
        r"etc/\.pwd\.lock",
        r"(?:root|home/[^/]+)/\.cache/(?:pip|uv)(?:/.*)?",
        r"(?:root|home/[^/]+)/\.npm/_(?:cacache|logs|update-notifier-last-checked)(?:/.*)?",
        r"(?:root|home/[^/]+)/\.(?:wget-hsts|bash_history|python_history)",
        r"(?:dev|proc|run|sys|tmp)/.+",
    )

    def drops(self, path: str) -> bool:
        return any(re.fullmatch(pattern, path) for pattern in self.patterns)


@dataclass(frozen=True, slots=True)
class _Entry:
    mode: int
    uid: int
    gid: int
    read: Read
    link: str = ""  # the earlier path of the same file


def compose_root(base: Path, layers: Sequence[Path], out: Path, *, clean: Clean | None = None) -> Composed:
    """Write ``base`` with ``layers`` over it as the image ``out``."""
    with ExitStack() as stack:
        image = stack.enter_context(Image(base))
        table = _of_image(image)
        for layer in layers:
            _lay_over(table, stack.enter_context(tarfile.open(layer, "r:")))
        for path in [path for path in table if clean is not None and clean.drops(path)]:
            del table[path]
        _check(table)
        return _write(table, out)


def _of_image(image: Image) -> dict[str, _Entry]:
    table = {}
    for node in image.walk():
        path = node.path.lstrip("/")
        if path and stat.S_IFMT(node.mode) in (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK):
            table[path] = _Entry(node.mode, node.uid, node.gid, partial(image.read, node))
    return table


def _lay_over(table: dict[str, _Entry], tar: tarfile.TarFile) -> None:
    for member in tar:
        if member.name.rstrip("/") in ("", ".") or not (
            member.isreg() or member.isdir() or member.issym() or member.islnk()
        ):
            continue  # the root itself is as it was; a machine brings its own devices
        path = checked_path(member.name)
        removed = split_whiteout(path)
        if removed is not None:
            _drop(table, removed)
            continue
        if member.isdir():
            mode = stat.S_IFDIR
        elif member.issym():
            mode = stat.S_IFLNK
        else:
            mode = stat.S_IFREG
        known = table.get(path)
        if known is not None and not (stat.S_ISDIR(known.mode) and member.isdir()):
            _drop(table, path)
        link = checked_path(member.linkname) if member.islnk() else ""
        table[path] = _Entry(mode | member.mode, member.uid, member.gid, _reader(tar, member), link)


def _reader(tar: tarfile.TarFile, member: tarfile.TarInfo) -> Read:
    def read() -> bytes:
        if member.issym():
            return os.fsencode(member.linkname)
        file = tar.extractfile(member)
        assert file is not None
        return file.read()

    return read


def _drop(table: dict[str, _Entry], path: str) -> None:
    entry = table.pop(path, None)
    if entry is not None and stat.S_ISDIR(entry.mode):
        for below in [other for other in table if other.startswith(path + "/")]:
            del table[below]


def _check(table: Mapping[str, _Entry]) -> None:
    for path, entry in table.items():
        above = posixpath.dirname(path)
        if above and (above not in table or not stat.S_ISDIR(table[above].mode)):
            raise Invalid(f"{path!r} lies in no directory", code="bad_layer")
        if entry.link and (entry.link not in table or not stat.S_ISREG(table[entry.link].mode)):
            raise Invalid(f"{path!r} is linked to {entry.link!r}, which is not there", code="bad_layer")


def _write(table: Mapping[str, _Entry], out: Path) -> Composed:
    with tempfile.TemporaryDirectory(prefix=".compose-", dir=out.parent) as scratch:
        tree = Path(scratch) / "tree"
        tree.mkdir(mode=0o755)
        for path in sorted(table, key=order):
            _make(tree, path, table[path])
        erofs.make_image(tree, out)
        subprocess.run(["rm", "-rf", str(tree)], check=True)
    with out.open("rb+") as file:
        digest = file_digest(file, "sha256").hexdigest()
        os.fsync(file.fileno())
    with Image(out) as image:
        return Composed(f"sha256:{digest}", image.tree_digest(), out.stat().st_size)


def _make(tree: Path, path: str, entry: _Entry) -> None:
    place = tree / path
    if entry.link:
        os.link(tree / entry.link, place, follow_symlinks=False)
        return
    if stat.S_ISDIR(entry.mode):
        place.mkdir()
    elif stat.S_ISLNK(entry.mode):
        os.symlink(entry.read(), os.fsencode(place))
    else:
        place.write_bytes(entry.read())
    os.lchown(place, entry.uid, entry.gid)
    if not stat.S_ISLNK(entry.mode):
        place.chmod(stat.S_IMODE(entry.mode))


def order(path: str) -> bytes:
    """Sorts paths depth first, parents before children."""
    return os.fsencode(path).replace(b"/", b"\0")


def split_whiteout(path: str) -> str | None:
    """What a whiteout removes, or None for an entry that is none."""
    above, name = posixpath.split(path)
    return posixpath.join(above, name.removeprefix(WHITEOUT)) if name.startswith(WHITEOUT) else None


def checked_path(name: str) -> str:
    """A tar entry's path below the root. Raises :class:`Invalid` for one that could lead anywhere else."""
    path = name.removeprefix("./").rstrip("/")
    is_short = 0 < len(os.fsencode(path)) <= PATH_MAX
    if not is_short or "\0" in path or any(part in ("", ".", "..") for part in path.split("/")):
        raise Invalid(f"{name[:100]!r} is no path of a layer", code="bad_layer")
    return path
