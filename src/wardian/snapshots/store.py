"""Snapshots on the local disk: each one a directory that exists completely or not at all.

    <root>/<id>/            files, and manifest.json
    <root>/.scratch/<name>/ being written, or being removed; emptied at start

A capture is written into a scratch directory. ``publish`` syncs and hashes its files, writes the manifest
last, renames the directory to its id and syncs the parent: after that it survives a power cut. ``load``
believes nothing it has not verified since this process started, or whose files have changed identity since.
"""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
from collections.abc import AsyncIterator, Callable, Mapping, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from hashlib import sha256
from pathlib import Path
from secrets import token_hex
from typing import Any, TypeVar, TypeVarTuple

from wardian.isolation.port import MachineImage
from wardian.model.errors import Unavailable, WardianError
from wardian.snapshots.manifest import (
    MANIFEST_BYTES_MAX,
    MANIFEST_NAME,
    File,
    Manifest,
    SnapshotDamaged,
    digest_of,
)
from wardian.store.durable import sync

SCRATCH = ".scratch"
FULL_BYTES = 64 * 1024
_CHUNK = 1 << 20
T = TypeVar("T")
Ts = TypeVarTuple("Ts")
_Identity = tuple[tuple[str, int, int, int, int], ...]


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
        self._verified: dict[str, _Identity] = {}
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
                *(self._run(_hash, image.directory / name) for name in image.files),
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

    def _publish(self, snapshot_id: str, directory: Path, raw: bytes) -> _Identity:
        path = directory / MANIFEST_NAME
        path.write_bytes(raw)
        sync(path)
        sync(directory)
        self._checkpoint("snapshot.manifest")
        final = self._path(snapshot_id)
        directory.rename(final)
        sync(self._root)
        self._checkpoint("snapshot.renamed")
        return _identity(final)

    def exists(self, snapshot_id: str) -> bool:
        """Whether a directory with a manifest is there. Says nothing about its truth: see :meth:`load`."""
        return (self._path(snapshot_id) / MANIFEST_NAME).is_file()

    async def load(self, snapshot_id: str, *, digest: str | None = None) -> tuple[Manifest, MachineImage]:
        """The verified snapshot. ``digest`` is what its row says the manifest's digest is.

        Raises :class:`SnapshotMissing`, :class:`SnapshotDamaged`, or ``ImageRefused`` for a foreign format.
        """
        return await self._run(self._load, snapshot_id, digest)

    def _load(self, snapshot_id: str, digest: str | None) -> tuple[Manifest, MachineImage]:
        directory = self._path(snapshot_id)
        try:
            with (directory / MANIFEST_NAME).open("rb") as file:
                raw = file.read(MANIFEST_BYTES_MAX + 1)
            identity = _identity(directory)
        except FileNotFoundError:
            raise SnapshotMissing(f"the files of snapshot {snapshot_id} are gone") from None
        except OSError as error:
            raise SnapshotDamaged(f"snapshot {snapshot_id} cannot be read: {error}") from error
        if len(raw) > MANIFEST_BYTES_MAX or (digest is not None and digest_of(raw) != digest):
            raise SnapshotDamaged(f"the manifest of snapshot {snapshot_id} is not the one that was written")
        manifest = Manifest.decode(raw)
        if manifest.id != snapshot_id:
            raise SnapshotDamaged(f"snapshot {snapshot_id} holds the files of {manifest.id}")
        if self._verified.get(snapshot_id) != identity:
            _verify(directory, manifest)
            self._verified[snapshot_id] = identity
        return manifest, manifest.image(directory)

    async def remove(self, snapshot_id: str) -> None:
        """Delete the snapshot's files. Idempotent; a crash half-way leaves only scratch."""
        self._verified.pop(snapshot_id, None)
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


def _verify(directory: Path, manifest: Manifest) -> None:
    present = {entry.name for entry in directory.iterdir()} - {MANIFEST_NAME}
    if present != set(manifest.files):
        odd = ", ".join(sorted(present ^ set(manifest.files))[:4])
        raise SnapshotDamaged(f"snapshot {manifest.id} has missing or foreign files: {odd}")
    for name, file in manifest.files.items():
        path = directory / name
        if path.is_symlink() or path.stat().st_size != file.size or _hash(path) != file.digest:
            raise SnapshotDamaged(
                f"{name} of snapshot {manifest.id} is not what was written",
                hint="the disk or somebody changed it; the snapshot cannot be used",
            )


def _identity(directory: Path) -> _Identity:
    """What changes when anybody touches a file: cheap to take, compared instead of hashing again."""
    facts = []
    for entry in sorted(os.scandir(directory), key=lambda entry: entry.name):
        stat = entry.stat(follow_symlinks=False)
        facts.append((entry.name, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns))
    return tuple(facts)


def _hash(path: Path) -> str:
    digest = sha256()
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return "sha256:" + digest.hexdigest()
