"""Layers: what a machine's files have become, compared with the root image it was booted from.

A layer is a tar: sorted by path, numeric owners, one time stamp, what was removed marked as OCI does it
(an empty file ``.wh.NAME``). The machine lists and packs its files itself, with its own ``find`` and ``tar``;
what it sends is taken for a claim about itself, checked entry by entry, and written anew.
"""

from __future__ import annotations

import asyncio
import os
import posixpath
import stat
import tarfile
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import file_digest
from pathlib import Path
from typing import IO

from wardian.guest.guest import Exit, Guest, ProcessConfig
from wardian.images.erofs import TIMESTAMP, Image
from wardian.isolation.port import RootImage
from wardian.model.errors import GuestFault, Invalid, LimitExceeded, WardianError

WHITEOUT = ".wh."
EXCLUDED = ("dev", "proc", "run", "sys")
"""What a machine brings along by itself, or forgets: nothing below these is part of any image."""

ENTRIES_MAX = 1_000_000
LISTING_MAX = 512 << 20
PATH_MAX = 4095
_FIELDS = 8
_KINDS = {"f": stat.S_IFREG, "d": stat.S_IFDIR, "l": stat.S_IFLNK}
_LIST = (
    "cd / && exec find . -xdev -mindepth 1 "
    + " ".join(f"-path './{name}/*' -prune -o" for name in EXCLUDED)
    + r" \( -type f -o -type d -o -type l \) -printf '%P\0%y\0%m\0%U\0%G\0%s\0%T@\0%l\0'"
)
_PACK = "exec tar --create --file=- --directory=/ --format=pax --no-recursion --numeric-owner --null --files-from=-"
_UNPACK = (
    "exec tar --extract --file=- --directory=/ --numeric-owner --preserve-permissions --touch --unlink-first "
    "--keep-directory-symlink"
)
_REMOVE = "cd / && exec xargs -0 -r rm -rf --"


@dataclass(frozen=True, slots=True)
class LayerInfo:
    """A written layer: ``digest`` (``sha256:<hex>``) of the tar, its size, and how many entries it has."""

    digest: str
    size_bytes: int
    entries: int


@dataclass(frozen=True, slots=True)
class _Fact:
    """One entry as a listing has it; a directory's size and time say nothing."""

    mode: int
    uid: int
    gid: int
    size: int
    mtime: int
    target: str


async def capture_layer(guest: Guest, root: RootImage, out: Path, *, size_max: int) -> LayerInfo:
    """Write what differs from ``root`` to ``out``, whole or not at all."""
    before = await asyncio.to_thread(_facts_of_image, root.path)
    now = await _listing(guest)
    changed = sorted((path for path in now if now[path] != before.get(path)), key=order)
    gone = _topmost([path for path in before if path not in now])
    with tempfile.TemporaryDirectory(prefix=".layer-", dir=out.parent) as scratch:
        sent, draft = Path(scratch) / "sent.tar", Path(scratch) / "layer.tar"
        if changed:
            names = b"\0".join(os.fsencode(path) for path in changed) + b"\0"
            with sent.open("wb") as file:
                await _pipe(guest, _PACK, names, partial(_write_bounded, file, size_max))
        info = await asyncio.to_thread(_rewrite, sent if changed else None, gone, set(changed), draft)
        draft.rename(out)
    return info


async def apply_layer(guest: Guest, layer: Path) -> None:
    """Lay a layer over a machine: what it has is there afterwards, what it marks as removed is not."""
    with tempfile.TemporaryDirectory(prefix=".apply-", dir=layer.parent) as scratch:
        plain = Path(scratch) / "plain.tar"
        gone = await asyncio.to_thread(_without_whiteouts, layer, plain)
        if gone:
            await _pipe(guest, _REMOVE, b"\0".join(os.fsencode(path) for path in gone) + b"\0", _nothing)
        with plain.open("rb") as file:
            await _pipe(guest, _UNPACK, file, _nothing)


def order(path: str) -> bytes:
    """Sorts paths depth first, parents before children."""
    return os.fsencode(path).replace(b"/", b"\0")


def is_excluded(path: str) -> bool:
    """Whether a path lies where no image has anything."""
    top, slash, _ = path.partition("/")
    return bool(slash) and top in EXCLUDED


def split_whiteout(path: str) -> str | None:
    """What a whiteout removes, or None for an entry that is none."""
    above, name = posixpath.split(path)
    return posixpath.join(above, name.removeprefix(WHITEOUT)) if name.startswith(WHITEOUT) else None


def checked_path(name: str) -> str:
    """A tar entry's path below the root. Raises :class:`Invalid` for one that could lead anywhere else."""
    path = name.removeprefix("./").rstrip("/")
    parts = path.split("/")
    if (
        not path
        or len(os.fsencode(path)) > PATH_MAX
        or "\0" in path
        or any(p in ("", ".", "..") for p in parts)
    ):
        raise Invalid(f"{name[:100]!r} is no path of a layer", code="bad_layer")
    return path


def _facts_of_image(path: Path) -> Mapping[str, _Fact]:
    facts: dict[str, _Fact] = {}
    with Image(path) as image:
        for node in image.walk():
            name = node.path.lstrip("/")
            kind = stat.S_IFMT(node.mode)
            if name and not is_excluded(name) and kind in _KINDS.values():
                target = image.read(node).decode(errors="surrogateescape") if kind == stat.S_IFLNK else ""
                facts[name] = _fact(node.mode, node.uid, node.gid, node.size, TIMESTAMP, target)
    return facts


def _fact(mode: int, uid: int, gid: int, size: int, mtime: int, target: str) -> _Fact:
    if not stat.S_ISREG(mode):
        size = mtime = 0
    if stat.S_ISLNK(mode):
        mode = stat.S_IFLNK
    return _Fact(mode, uid, gid, size, mtime, target)


async def _listing(guest: Guest) -> Mapping[str, _Fact]:
    data = bytearray()

    def take(chunk: bytes) -> None:
        data.extend(chunk)
        if len(data) > LISTING_MAX:
            raise LimitExceeded("the machine has too many files", code="layer_too_large")

    await _pipe(guest, _LIST, b"", take)
    fields = bytes(data).split(b"\0")
    if (len(fields) - 1) % _FIELDS:
        raise GuestFault("the machine's list of its files has no form")
    facts: dict[str, _Fact] = {}
    try:
        for at in range(0, len(fields) - 1, _FIELDS):
            name, kind, mode, uid, gid, size, mtime, target = fields[at : at + _FIELDS]
            path = checked_path(os.fsdecode(name))
            whole, _, rest = mtime.partition(b".")
            when = int(whole) if not rest.strip(b"0") else -1  # no image has fractions of a second
            facts[path] = _fact(
                _KINDS[kind.decode()] | int(mode, 8), int(uid), int(gid), int(size), when, os.fsdecode(target)
            )
    except (ValueError, KeyError, Invalid) as error:
        raise GuestFault(f"the machine's list of its files is wrong: {error}") from None
    if len(facts) > ENTRIES_MAX:
        raise LimitExceeded(f"more than {ENTRIES_MAX} files", code="layer_too_large")
    return facts


def _topmost(paths: Sequence[str]) -> list[str]:
    """Of paths that are gone, those whose directory is still there."""
    gone = set(paths)
    return sorted((path for path in gone if posixpath.dirname(path) not in gone), key=order)


def _write_bounded(file: IO[bytes], size_max: int, chunk: bytes) -> None:
    if file.tell() + len(chunk) > size_max + (64 << 20):
        raise LimitExceeded("a step wrote more than the template's disk holds", code="layer_too_large")
    file.write(chunk)


def _rewrite(sent: Path | None, gone: Sequence[str], wanted: set[str], out: Path) -> LayerInfo:
    """What the machine sent, checked and in canonical form, with the whiteouts at their place."""
    entries = 0
    removed = list(gone)
    with tarfile.open(out, "w", format=tarfile.PAX_FORMAT) as layer:
        for info, content in _sent(sent, wanted):
            while removed and order(removed[0]) < order(info.name):
                layer.addfile(_whiteout(removed.pop(0)))
                entries += 1
            layer.addfile(info, content)
            entries += 1
        for path in removed:
            layer.addfile(_whiteout(path))
            entries += 1
    with out.open("rb+") as file:
        digest = file_digest(file, "sha256").hexdigest()
        os.fsync(file.fileno())
    return LayerInfo(f"sha256:{digest}", out.stat().st_size, entries)


def _sent(sent: Path | None, wanted: set[str]) -> Iterator[tuple[tarfile.TarInfo, IO[bytes] | None]]:
    if sent is None:
        return
    seen: set[str] = set()
    last = b""
    try:
        with tarfile.open(sent, "r:") as tar:
            for member in tar:
                path = checked_path(member.name)
                if path not in wanted or order(path) <= last:
                    raise GuestFault(f"the machine sent {path!r}, which was not asked for")
                if split_whiteout(path) is not None:
                    raise Invalid(
                        f"{path!r} cannot be kept: {WHITEOUT} marks what is removed", code="bad_layer"
                    )
                last = order(path)
                seen.add(path)
                yield _canonical(path, member, seen), tar.extractfile(member) if member.isreg() else None
    except (tarfile.TarError, EOFError, ValueError) as error:
        raise GuestFault(f"the machine did not send a tar: {error}") from None


def _canonical(path: str, member: tarfile.TarInfo, seen: set[str]) -> tarfile.TarInfo:
    info = tarfile.TarInfo(path)
    info.mode, info.uid, info.gid, info.mtime = member.mode & 0o7777, member.uid, member.gid, TIMESTAMP
    if not 0 <= info.uid < 1 << 32 or not 0 <= info.gid < 1 << 32:
        raise GuestFault(f"{path!r} belongs to nobody possible")
    if member.isdir():
        info.type = tarfile.DIRTYPE
    elif member.issym():
        info.type, info.linkname, info.mode = tarfile.SYMTYPE, member.linkname, 0o777
    elif member.islnk():
        info.type, info.linkname = tarfile.LNKTYPE, checked_path(member.linkname)
        if info.linkname not in seen:
            raise GuestFault(f"{path!r} is linked to what was not sent")
    elif member.isreg():
        info.size = member.size
    else:
        raise GuestFault(f"{path!r} is of no kind that was asked for")
    return info


def _whiteout(path: str) -> tarfile.TarInfo:
    above, name = posixpath.split(path)
    info = tarfile.TarInfo(posixpath.join(above, WHITEOUT + name))
    info.mtime = TIMESTAMP
    return info


def _without_whiteouts(layer: Path, out: Path) -> list[str]:
    """The layer without its whiteouts, and what these remove."""
    gone = []
    with tarfile.open(layer, "r:") as tar, tarfile.open(out, "w", format=tarfile.PAX_FORMAT) as plain:
        for member in tar:
            removed = split_whiteout(member.name)
            if removed is not None:
                gone.append(removed)
            else:
                plain.addfile(member, tar.extractfile(member) if member.isreg() else None)
    return gone


def _nothing(chunk: bytes) -> None:
    """Output nobody wants."""


async def _pipe(guest: Guest, script: str, given: bytes | IO[bytes], take: Callable[[bytes], None]) -> None:
    """Run a shell line as root with ``given`` as its input and ``take`` for its output."""
    config = ProcessConfig("/bin/sh", ("-c", script), {}, "/")
    process = await guest.exec(config, user="root", env={"LC_ALL": "C"}, stdin=True)
    events = process.subscribe()

    async def feed() -> None:
        async for chunk in _chunks(given):
            await process.write(chunk)
        await process.close_stdin()

    feeding = asyncio.create_task(feed())
    complaint = bytearray()
    try:
        async for event in events:
            if isinstance(event, Exit):
                if event.exit_code or not event.exited:
                    said = complaint.decode("utf-8", "replace").strip()[-400:]
                    raise WardianError(f"the machine's files cannot be carried: {event.status}: {said}")
                await feeding
                return
            if event.channel == "stdout":
                take(event.data)
            elif len(complaint) < 65536:
                complaint += event.data
    finally:
        feeding.cancel()
        await asyncio.gather(feeding, return_exceptions=True)
    raise GuestFault("the machine lost a process")


async def _chunks(given: bytes | IO[bytes]) -> AsyncIterator[bytes]:
    if isinstance(given, bytes):
        for at in range(0, len(given), 65536):
            yield given[at : at + 65536]
        return
    while chunk := given.read(65536):
        yield chunk
