"""Snapshots on disk: whole or absent, verified or refused."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from wardian.isolation.port import Capabilities, ImageRefused, IsolationLevel, MachineImage
from wardian.model.errors import WardianError
from wardian.model.resources import Resources
from wardian.snapshots import store as stores
from wardian.snapshots.digests import BLOCK, digest_of_file
from wardian.snapshots.manifest import File, Manifest, digest_of
from wardian.snapshots.store import SnapshotStore

HOST = Capabilities(
    "fake", IsolationLevel.GVISOR, usable=True, build="b1", cpu_features=frozenset({"avx", "sse"})
)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SnapshotStore]:
    store = SnapshotStore(tmp_path / "s")
    await store.open()
    yield store
    await store.close()


async def publish(store: SnapshotStore, name: str, content: bytes = b"memory") -> tuple[Manifest, str]:
    async with store.scratch() as directory:
        (directory / "pages").write_bytes(content)
        (directory / "state").write_bytes(b"state")
        image = MachineImage(
            directory=directory,
            files={"pages": len(content), "state": 5},
            driver="fake",
            build="b1",
            cpu_features=frozenset({"sse"}),
            root_digest="sha256:r",
            resources=Resources(),
        )
        return await store.publish(name, image, parent="p0", created_at=7, facts={"sandbox": "i1"})


async def test_a_published_snapshot_comes_back_as_it_was(store: SnapshotStore, tmp_path: Path) -> None:
    manifest, digest = await publish(store, "s1")
    loaded, image = await store.load("s1", digest=digest)
    assert loaded == manifest
    assert (loaded.digest, loaded.parent, loaded.size_bytes) == (digest, "p0", 11)
    assert (image.directory / "pages").read_bytes() == b"memory"
    assert store.exists("s1")
    assert list((tmp_path / "s/.scratch").iterdir()) == []
    loaded.check(HOST)


async def _reopened(tmp_path: Path) -> SnapshotStore:
    store = SnapshotStore(tmp_path / "s")
    await store.open()
    return store


def _flip(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[0] ^= 1
    path.write_bytes(bytes(raw))


def _touch_up_manifest(path: Path) -> None:
    document = json.loads(path.read_text())
    document["build"] = "b2"
    path.write_text(json.dumps(document))


@pytest.mark.parametrize("again", [False, True], ids=["same process", "after a restart"])
@pytest.mark.parametrize(
    ("harm", "code"),
    [
        (lambda d: _flip(d / "pages"), "snapshot_damaged"),
        (lambda d: (d / "pages").write_bytes(b"memor"), "snapshot_damaged"),
        (lambda d: (d / "state").unlink(), "snapshot_damaged"),
        (lambda d: (d / "extra").write_bytes(b""), "snapshot_damaged"),
        (lambda d: _touch_up_manifest(d / "manifest.json"), "snapshot_damaged"),
        (lambda d: (d / "manifest.json").write_bytes(b"{"), "snapshot_damaged"),
        (lambda d: (d / "manifest.json").unlink(), "snapshot_missing"),
    ],
)
async def test_a_harmed_snapshot_is_refused_with_the_reason(
    store: SnapshotStore, tmp_path: Path, harm: Callable[[Path], None], code: str, again: bool
) -> None:
    _, digest = await publish(store, "s1")
    harm(tmp_path / "s/s1")
    opened = await _reopened(tmp_path) if again else store
    with pytest.raises(WardianError) as refused:
        await opened.load("s1", digest=digest)
    assert refused.value.code == code
    assert "s1" in refused.value.message
    await opened.close()


async def test_one_snapshot_cannot_stand_in_for_another(store: SnapshotStore, tmp_path: Path) -> None:
    await publish(store, "s1")
    _, digest = await publish(store, "s2", b"other")
    (tmp_path / "s/s2").rename(tmp_path / "s/away")
    (tmp_path / "s/s1").rename(tmp_path / "s/s2")
    with pytest.raises(WardianError):
        await store.load("s2", digest=digest)
    with pytest.raises(WardianError):
        await store.load("s2")


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"driver": "other"}, "captured by the driver other"),
        ({"build": "b2"}, "build b2"),
        ({"cpu_features": ["avx512"]}, "avx512"),
    ],
)
def test_a_foreign_snapshot_is_refused_with_the_reason(changed: dict[str, object], words: str) -> None:
    known = {
        "format": 1, "id": "s1", "parent": None, "created_at": 1, "driver": "fake", "build": "b1",
        "cpu_features": ["sse"], "root_digest": "r", "resources": {}, "files": {},
    }  # fmt: skip
    with pytest.raises(ImageRefused, match=words):
        Manifest.decode(json.dumps(known | changed).encode()).check(HOST)


def test_a_snapshot_of_a_later_format_is_refused() -> None:
    with pytest.raises(ImageRefused, match="format 3"):
        Manifest.decode(b'{"format": 3}')


async def test_a_snapshot_of_the_first_format_is_as_good_as_ever(
    store: SnapshotStore, tmp_path: Path
) -> None:
    """Its digests are of the bytes one after the other, and its manifest is what it was."""
    content = bytes(3 << 20) + b"memory" * 50_000
    manifest, _ = await publish(store, "s1", content)
    place = tmp_path / "s/s1"
    first = {
        name: File(file.size, digest_of((place / name).read_bytes())) for name, file in manifest.files.items()
    }
    old = replace(manifest, files=first, format=1)
    (place / "manifest.json").write_bytes(old.encode())
    again = await _reopened(tmp_path)
    loaded, _ = await again.load("s1", digest=old.digest)
    assert (loaded, loaded.encode()) == (old, old.encode())
    assert await again.compress("s1", unused_s=0)
    assert not (place / "pages").exists()
    _, image = await again.load("s1", digest=old.digest)
    assert (image.directory / "pages").read_bytes() == content
    _flip(place / "pages.zst")
    (place / "pages").unlink()
    with pytest.raises(WardianError, match="not what was written"):
        await again.load("s1", digest=old.digest)
    await again.close()


def test_zeros_and_holes_are_the_same_and_every_byte_counts(tmp_path: Path) -> None:
    size = 5 * BLOCK + 7
    for written in ({}, {0: b"a"}, {3 * BLOCK - 1: b"ab"}, {size - 1: b"z"}, {BLOCK: b"a", 4 * BLOCK: b"a"}):
        raw = bytearray(size)
        with (tmp_path / "holes").open("wb") as holes:
            holes.truncate(size)
            for at, data in written.items():
                raw[at : at + len(data)] = data
                holes.seek(at)
                holes.write(data)
        (tmp_path / "zeros").write_bytes(raw)
        digest = digest_of_file(tmp_path / "zeros")
        assert digest_of_file(tmp_path / "holes") == digest
        for other in (raw[:-1], raw + b"\0", raw[BLOCK:] + raw[:BLOCK] if any(raw) else raw[1:]):
            (tmp_path / "other").write_bytes(other)
            assert digest_of_file(tmp_path / "other") != digest


@pytest.mark.parametrize("name", ["../x", "manifest.json", "", "a/b"])
def test_a_manifest_cannot_name_files_elsewhere(name: str) -> None:
    document = {
        "format": 1, "id": "s1", "parent": None, "created_at": 1, "driver": "f", "build": "b",
        "cpu_features": [], "root_digest": "r", "resources": {}, "files": {name: {"size": 1, "digest": "d"}},
    }  # fmt: skip
    with pytest.raises(WardianError, match="leaves the directory"):
        Manifest.decode(json.dumps(document).encode())


async def test_an_id_cannot_name_a_path(store: SnapshotStore) -> None:
    for wrong in ("../s", "", ".scratch", "a/b"):
        with pytest.raises(WardianError):
            await store.load(wrong)


async def test_a_full_disk_publishes_nothing(
    store: SnapshotStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(stores, "sync", full)
    with pytest.raises(WardianError) as refused:
        await publish(store, "s1")
    assert refused.value.code == "disk_full"
    assert not store.exists("s1")
    assert list((tmp_path / "s/.scratch").iterdir()) == []


async def test_what_nobody_knows_is_collected_and_scratch_is_emptied(
    store: SnapshotStore, tmp_path: Path
) -> None:
    for name in ("s1", "s2"):
        await publish(store, name)
    (tmp_path / "s/.scratch/half").mkdir()
    again = await _reopened(tmp_path)
    assert await again.collect({"s1"}) == ["s2"]
    assert sorted(path.name for path in (tmp_path / "s").iterdir()) == [".scratch", "s1"]
    assert list((tmp_path / "s/.scratch").iterdir()) == []
    await again.remove("s1")
    await again.remove("s1")
    assert not again.exists("s1")
    await again.close()
