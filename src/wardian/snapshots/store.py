"""Snapshots on the local disk: each one a directory that exists completely or not at all.

    <root>/<id>/            files, and manifest.json, whose time is that of the last use
    <root>/.scratch/<name>/ being written, or being removed; emptied at start

A capture is written into a scratch directory. ``publish`` syncs and hashes its files, writes the manifest
last, renames the directory to its id and syncs the parent: after that it survives a power cut. ``load``
believes nothing it has not verified since this process started, or whose files have changed identity since.

Of a snapshot that was compressed, files are ``<name>.zst`` (:mod:`wardian.snapshots.packed`), with ``<name>``
beside it or without: at every instant one of them is whole. ``load`` expands what is missing and leaves the
compressed file, which is as good as it was, so ``compress`` need only check it and drop the plain one again.
The manifest knows nothing of this.
"""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from secrets import token_hex
from typing import Any, TypeVar, TypeVarTuple
from weakref import WeakValueDictionary

from wardian.isolation.port import MachineImage
from wardian.model.errors import Unavailable, WardianError
from wardian.snapshots import files
from wardian.snapshots.digests import digest_of_file
from wardian.snapshots.manifest import (
    MANIFEST_BYTES_MAX,
    MANIFEST_NAME,
    File,
    Manifest,
    SnapshotDamaged,
    digest_of,
)
from wardian.snapshots.packed import NotWhatItWas, unpack
from wardian.snapshots.packing import Packer
from wardian.store.durable import sync

SCRATCH = ".scratch"
FULL_BYTES = 64 * 1024
T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class SnapshotMissing(WardianError):
    """The snapshot's directory is not there, though its row is."""

    code = "snapshot_missing"


class DiskFull(Unavailable):
    """The host's data disk cannot take the snapshot."""

    code = "disk_full"


def _no_checkpoint(_name: str) -> None:
    """Production has no fault injection."""


class SnapshotStore:
    """The snapshots under one directory. One process owns it (the node's lease sees to that)."""

    def __init__(self, root: Path, *, checkpoint: Callable[[str], None] = _no_checkpoint) -> None:
        self._root = root
        self._scratch = root / SCRATCH
        self._checkpoint = checkpoint
        self._verified: dict[str, files.Identity] = {}
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._packer = Packer(self._scratch, checkpoint)
        self._threads = ThreadPoolExecutor(4, thread_name_prefix="snapshots")

    async def open(self) -> None:
        """Make the directory, and drop what a dead process left half-written."""
        await self._run(self._open)

    def _open(self) -> None:
        shutil.rmtree(self._scratch, ignore_errors=True)
        self._root.mkdir(parents=True, exist_ok=True)
        self._root.chmod(0o700)  # it holds the memory of tenants
        self._scratch.mkdir()

    async def close(self) -> None:
        await asyncio.to_thread(self._threads.shutdown)

    @asynccontextmanager
    async def scratch(self) -> AsyncIterator[Path]:
        """An empty directory to capture into. Gone afterwards, unless it was published."""
        directory = self._scratch / token_hex(8)
        await self._run(directory.mkdir)
        try:
            yield directory
        finally:
            await asyncio.shield(self._run(shutil.rmtree, directory, True))

    async def publish(
        self,
        snapshot_id: str,
        image: MachineImage,
        *,
        parent: str | None,
        created_at: int,
        facts: Mapping[str, Any],
    ) -> tuple[Manifest, str]:
        """Make the capture in ``image.directory`` the durable snapshot ``snapshot_id``.

        Returns the manifest and its digest. On failure (:class:`DiskFull`, say) nothing is published.
        """
        try:
            hashes = await asyncio.gather(
                *(self._run(digest_of_file, image.directory / name) for name in image.files),
                *(self._run(sync, image.directory / name) for name in image.files),
            )
            manifest = Manifest(
                id=snapshot_id,
                parent=parent,
                created_at=created_at,
                driver=image.driver,
                build=image.build,
                cpu_features=image.cpu_features,
                root_digest=image.root_digest,
                resources=image.resources,
                files={
                    name: File(size, str(digest))
                    for (name, size), digest in zip(image.files.items(), hashes, strict=False)
                },
                facts=facts,
            )
            self._checkpoint("snapshot.synced")
            raw = manifest.encode()
            identity = await self._run(self._publish, snapshot_id, image.directory, raw)
        except OSError as error:
            raise disk_error(error) from error
        self._verified[snapshot_id] = identity
        return manifest, digest_of(raw)

    def _publish(self, snapshot_id: str, directory: Path, raw: bytes) -> files.Identity:
        path = directory / MANIFEST_NAME
        path.write_bytes(raw)
        sync(path)
        sync(directory)
        self._checkpoint("snapshot.manifest")
        final = self._path(snapshot_id)
        directory.rename(final)
        sync(self._root)
        self._checkpoint("snapshot.renamed")
        return files.identity(final)

    def exists(self, snapshot_id: str) -> bool:
        """Whether a directory with a manifest is there. Says nothing about its truth: see :meth:`load`."""
        return (self._path(snapshot_id) / MANIFEST_NAME).is_file()

    async def load(self, snapshot_id: str, *, digest: str | None = None) -> tuple[Manifest, MachineImage]:
        """The verified snapshot, expanded if it was compressed: once, however many ask at a time.

        ``digest`` is what its row says the manifest's digest is. The files stay for as long as somebody is
        likely to open them: see :meth:`compress`. Raises :class:`SnapshotMissing`, :class:`SnapshotDamaged`,
        :class:`DiskFull`, or ``ImageRefused`` for a foreign format.
        """

        async def in_turn() -> tuple[Manifest, MachineImage]:
            async with self._turn(snapshot_id):
                return await self._run(self._load, snapshot_id, digest)

        return await asyncio.shield(asyncio.ensure_future(in_turn()))

    def _turn(self, snapshot_id: str) -> asyncio.Lock:
        """Held by whoever changes which files of a snapshot are there."""
        return self._turns.setdefault(snapshot_id, asyncio.Lock())

    def _load(self, snapshot_id: str, digest: str | None) -> tuple[Manifest, MachineImage]:
        directory = self._path(snapshot_id)
        manifest = self._manifest(snapshot_id, digest)
        try:
            if self._verified.get(snapshot_id) != files.identity(directory):
                self._make_true(directory, manifest)
                self._verified[snapshot_id] = files.identity(directory)
            os.utime(directory / MANIFEST_NAME)
        except FileNotFoundError:
            raise _missing(snapshot_id) from None
        except OSError as error:
            raise disk_error(error) from error
        return manifest, manifest.image(directory)

    def _manifest(self, snapshot_id: str, digest: str | None = None) -> Manifest:
        try:
            with (self._path(snapshot_id) / MANIFEST_NAME).open("rb") as file:
                raw = file.read(MANIFEST_BYTES_MAX + 1)
        except FileNotFoundError:
            raise _missing(snapshot_id) from None
        except OSError as error:
            raise SnapshotDamaged(f"snapshot {snapshot_id} cannot be read: {error}") from error
        if len(raw) > MANIFEST_BYTES_MAX or (digest is not None and digest_of(raw) != digest):
            raise SnapshotDamaged(f"the manifest of snapshot {snapshot_id} is not the one that was written")
        manifest = Manifest.decode(raw)
        if manifest.id != snapshot_id:
            raise SnapshotDamaged(f"snapshot {snapshot_id} holds the files of {manifest.id}")
        return manifest

    def _make_true(self, directory: Path, manifest: Manifest) -> None:
        """Have every file there, as it was written."""
        files.check_names(directory, manifest)
        for name, file in manifest.files.items():
            plain = directory / name
            if not files.is_whole(plain, file):
                self._expand(manifest.id, plain, file)

    def _expand(self, snapshot_id: str, plain: Path, file: File) -> None:
        """Not made durable: after a power cut it is verified, found wanting, and expanded again."""
        packed, draft = files.packed(plain), self._scratch / token_hex(8)
        if packed.is_symlink() or not packed.is_file():
            raise files.damaged(snapshot_id, plain.name)
        try:
            unpack(packed, draft, file.size, file.digest)
        except NotWhatItWas as error:
            raise files.damaged(snapshot_id, plain.name) from error
        self._checkpoint("snapshot.expanded")
        draft.rename(plain)
        self._checkpoint("snapshot.whole")

    async def compress(self, snapshot_id: str, *, unused_s: float) -> bool:
        """Compress a snapshot that nobody has loaded for ``unused_s``; say whether anything came of it.

        What is loaded meanwhile keeps its plain files: whoever loads one has ``unused_s`` to open them. What
        is damaged is left alone. After a cancellation it is as good as it was.
        """
        directory = self._path(snapshot_id)
        try:
            if await self._run(self._unused_for, snapshot_id) < unused_s:
                return False
            manifest = await self._run(self._manifest, snapshot_id)
            plain = {directory / name: file for name, file in manifest.files.items()}
            there = [path for path in plain if await self._run(path.exists)]
            packed = [path for path in there if await self._packer.pack(path, plain[path])]
            async with self._turn(snapshot_id):
                if not packed or await self._run(self._unused_for, snapshot_id) < unused_s:
                    return False
                await self._run(self._drop, directory, packed)
        except (FileNotFoundError, SnapshotMissing):
            return False  # it was removed meanwhile
        except OSError as error:
            raise disk_error(error) from error
        return True

    def _unused_for(self, snapshot_id: str) -> float:
        """Seconds since it was loaded, or made."""
        try:
            return time.time() - (self._path(snapshot_id) / MANIFEST_NAME).stat().st_mtime
        except FileNotFoundError:
            raise _missing(snapshot_id) from None

    def _drop(self, directory: Path, plain: Sequence[Path]) -> None:
        """The plain files go: the compressed ones are checked and durable."""
        self._verified.pop(directory.name, None)
        for path in plain:
            path.unlink()
            self._checkpoint("snapshot.dropped")
        sync(directory)

    async def stored_bytes(self, snapshot_id: str) -> int:
        """What a snapshot takes on disk now. Raises :class:`SnapshotMissing`."""
        return await self._run(self._stored_bytes, snapshot_id)

    def _stored_bytes(self, snapshot_id: str) -> int:
        try:
            return sum(files.stored(entry) for entry in self._path(snapshot_id).iterdir())
        except FileNotFoundError:
            raise _missing(snapshot_id) from None

    async def remove(self, snapshot_id: str) -> None:
        """Delete the snapshot's files. Idempotent; a crash half-way leaves only scratch."""
        self._verified.pop(snapshot_id, None)
        self._packer.forget(self._path(snapshot_id))
        await self._run(self._remove, snapshot_id)

    def _remove(self, snapshot_id: str) -> None:
        doomed = self._scratch / f"removed-{token_hex(8)}"
        try:
            self._path(snapshot_id).rename(doomed)
        except FileNotFoundError:
            return
        shutil.rmtree(doomed, ignore_errors=True)

    async def collect(self, known: Set[str]) -> list[str]:
        """Remove every snapshot whose id is not in ``known``; return their ids."""
        names = await self._run(os.listdir, self._root)
        strays = [name for name in names if name != SCRATCH and name not in known]
        for name in strays:
            await self.remove(name)
        return strays

    def _path(self, snapshot_id: str) -> Path:
        if not snapshot_id.isalnum():
            raise SnapshotMissing(f"{snapshot_id!r} is not a snapshot id")
        return self._root / snapshot_id

    async def _run(self, fn: Callable[[*Ts], T], *args: *Ts) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, fn, *args)


def is_full(directory: Path) -> bool:
    """Whether the disk under ``directory`` has no room left to speak of."""
    facts = os.statvfs(directory)
    return facts.f_bavail * facts.f_frsize < FULL_BYTES or facts.f_favail == 0 < facts.f_files


def disk_full() -> DiskFull:
    return DiskFull("no space left on the host's data disk", hint="free some space, then try again")


def disk_error(error: OSError) -> WardianError:
    """A failed write to the data disk, in words."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return disk_full()
    return WardianError(f"the host's data disk failed: {error}", code="disk_error")


def _missing(snapshot_id: str) -> SnapshotMissing:
    return SnapshotMissing(f"the files of snapshot {snapshot_id} are gone")
