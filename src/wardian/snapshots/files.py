"""The files of a snapshot: plain, compressed (``<name>.zst``), or both."""

from __future__ import annotations

import os
from pathlib import Path

from wardian.snapshots.digests import digest_of_file
from wardian.snapshots.manifest import MANIFEST_NAME, File, Manifest, SnapshotDamaged
from wardian.snapshots.packed import SUFFIX

Identity = tuple[tuple[str, int, int, int, int], ...]


def check_names(directory: Path, manifest: Manifest) -> None:
    """Raise :class:`SnapshotDamaged` unless every file is there, plain or compressed, and no other is."""
    known = {packed(Path(name)).name: name for name in manifest.files} | {
        name: name for name in manifest.files
    }
    present = {entry.name for entry in directory.iterdir()} - {MANIFEST_NAME}
    if odd := {known.get(name, name) for name in present} ^ set(manifest.files):
        raise SnapshotDamaged(
            f"snapshot {manifest.id} has missing or foreign files: {', '.join(sorted(odd)[:4])}"
        )


def is_whole(path: Path, file: File) -> bool:
    """Whether a file is there, and what was written."""
    if path.is_symlink() or not path.is_file():
        return False
    return path.stat().st_size == file.size and digest_of_file(path, file.digest) == file.digest


def damaged(snapshot_id: str, name: str) -> SnapshotDamaged:
    """The error of a file that is not."""
    return SnapshotDamaged(
        f"{name} of snapshot {snapshot_id} is not what was written",
        hint="the disk or somebody changed it; the snapshot cannot be used",
    )


def packed(path: Path) -> Path:
    """Where the compressed file of a plain one is."""
    return path.with_name(path.name + SUFFIX)


def stored(path: Path) -> int:
    """Bytes on disk: holes take none."""
    return path.stat(follow_symlinks=False).st_blocks * 512


def identity(directory: Path) -> Identity:
    """What changes when anybody touches a file: cheap to take, compared instead of hashing again.

    Not of the manifest, which is read every time.
    """
    facts = []
    files = (entry for entry in os.scandir(directory) if entry.name != MANIFEST_NAME)
    for entry in sorted(files, key=lambda entry: entry.name):
        stat = entry.stat(follow_symlinks=False)
        facts.append((entry.name, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns))
    return tuple(facts)
