"""Releases on the local disk, by digest: each exists completely or not at all.

    <root>/<digest>/index.json   entries, in order
    <root>/<digest>/content      their bytes, one after the other
    <root>/.scratch/             being written; emptied at start

Nothing is believed that was not hashed since this process started; from then on the file is held open, so
that what is served is what was hashed.
"""

from __future__ import annotations

import json
import mmap
import os
import shutil
from collections.abc import Sequence, Set
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from secrets import token_hex

from wardian.model.errors import WardianError
from wardian.runners.manifest import FILE, Manifest, parse
from wardian.runners.tree import LINE_BYTES_MAX, Entry, Tree, digest_of, interpreter_of
from wardian.store.durable import sync

SCRATCH = ".scratch"


class ReleaseDamaged(WardianError):
    """The bytes on this host are not those that were released."""

    code = "release_damaged"


@dataclass(frozen=True, slots=True)
class Opened:
    """A verified release. ``offsets`` is where in ``content`` the bytes of each entry begin."""

    digest: str
    entries: Sequence[Entry]
    offsets: Sequence[int]
    content: bytes | mmap.mmap
    manifest: Manifest

    def interpreter_of(self, path: str) -> tuple[str, ...]:
        """What a script of it names as its interpreter."""
        index = next(number for number, entry in enumerate(self.entries) if entry.path == path)
        return interpreter_of(self.read(index, 0, LINE_BYTES_MAX))

    def read(self, index: int, offset: int, size: int) -> bytes:
        """Bytes of an entry."""
        entry, start = self.entries[index], self.offsets[index]
        offset = min(offset, entry.size)
        return self.content[start + offset : start + min(offset + size, entry.size)]


class ReleaseStore:
    """The releases under one directory. Blocks; one process owns it."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._opened: dict[str, Opened] = {}
        shutil.rmtree(root / SCRATCH, ignore_errors=True)
        (root / SCRATCH).mkdir(parents=True, mode=0o700)
        root.chmod(0o700)

    def keep(self, tree: Tree) -> str:
        """Keep a tree for good, and return its digest. It survives a power cut then."""
        digest = tree.digest
        place = self._root / digest
        if place.exists():
            return digest
        scratch = self._root / SCRATCH / token_hex(8)
        scratch.mkdir()
        with (scratch / "content").open("wb") as file:
            for entry in tree.entries:
                file.write(tree.contents.get(entry.path, b""))
        (scratch / "index.json").write_text(json.dumps([asdict(entry) for entry in tree.entries]))
        for path in (scratch / "content", scratch / "index.json", scratch):
            sync(path)
        try:
            scratch.rename(place)
        except OSError:  # somebody released the same at the same time
            shutil.rmtree(scratch, ignore_errors=True)
            if not place.exists():
                raise
        sync(self._root)
        return digest

    def known(self, digest: str) -> Opened | None:
        """A release that has been opened. Waits for no disk."""
        return self._opened.get(digest)

    def open(self, digest: str) -> Opened:
        """A release, every byte of it checked. Raises :class:`ReleaseDamaged`."""
        if (known := self._opened.get(digest)) is not None:
            return known
        try:
            opened = _open(self._root / digest, digest)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise ReleaseDamaged(
                f"release {digest[:16]} cannot be read: {error}", hint="release it again"
            ) from error
        self._opened[digest] = opened
        return opened

    def remove(self, digest: str) -> None:
        """Remove the files of a release. Idempotent. Who has it open can read on."""
        self._opened.pop(digest, None)
        doomed = self._root / SCRATCH / token_hex(8)
        try:
            (self._root / digest).rename(doomed)
        except FileNotFoundError:
            return
        shutil.rmtree(doomed, ignore_errors=True)

    def collect(self, known: Set[str]) -> list[str]:
        """Remove every release whose digest is not in ``known``; return their digests."""
        strays = [name for name in os.listdir(self._root) if name != SCRATCH and name not in known]
        for name in strays:
            self.remove(name)
        return strays


def _open(place: Path, digest: str) -> Opened:
    entries = [Entry(**each) for each in json.loads((place / "index.json").read_bytes())]
    if digest_of(entries) != digest:
        raise ValueError("its index is not what was released")
    descriptor = os.open(place / "content", os.O_RDONLY | os.O_CLOEXEC)
    try:
        size = os.fstat(descriptor).st_size
        content = mmap.mmap(descriptor, 0, prot=mmap.PROT_READ) if size else b""
    finally:
        os.close(descriptor)
    offsets, at = [], 0
    for entry in entries:
        offsets.append(at)
        if not entry.is_directory and sha256(content[at : at + entry.size]).hexdigest() != entry.digest:
            raise ValueError(f"{entry.path} is not what was released")
        at += entry.size
    if at != size:
        raise ValueError("its content has another size")
    index = next(number for number, entry in enumerate(entries) if entry.path == FILE)
    raw = content[offsets[index] : offsets[index] + entries[index].size]
    return Opened(digest, entries, offsets, content, parse(bytes(raw)))


__all__ = ["Opened", "ReleaseDamaged", "ReleaseStore"]
