"""Compressed snapshots: the same as before, expanded once, damaged or bombs refused, whatever interrupts."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import zstandard
from tests.small_disk import fill, needs_root, small_disk
from tests.unit.test_snapshot_store import publish

from wardian.model.errors import WardianError
from wardian.snapshots.store import SnapshotStore

MIB = 1 << 20
CONTENT = bytes(MIB) + b"words " * 100_000 + bytes(3 * MIB) + b"the end"
"""Data with pages of zeros before and between."""


class Steps:
    """The checkpoints that were passed; ``then`` is done at each."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.then: Callable[[str], None] = lambda name: None

    def __call__(self, name: str) -> None:
        self.seen.append(name)
        self.then(name)


@pytest.fixture
def steps() -> Steps:
    return Steps()


@pytest.fixture
async def store(tmp_path: Path, steps: Steps) -> AsyncIterator[SnapshotStore]:
    store = SnapshotStore(tmp_path / "s", checkpoint=steps)
    await store.open()
    yield store
    await store.close()
    assert list((tmp_path / "s/.scratch").iterdir()) == []


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "s/s1"


def names(place: Path) -> set[str]:
    return {path.name for path in place.iterdir()}


PLAIN = {"pages", "state", "manifest.json"}
PACKED = {"pages.zst", "state", "manifest.json"}


async def compressed(store: SnapshotStore, content: bytes = CONTENT) -> str:
    _, digest = await publish(store, "s1", content)
    assert await store.compress("s1", unused_s=0)
    return digest


async def test_it_comes_back_as_it_was_and_is_compressed_again(
    store: SnapshotStore, place: Path, steps: Steps
) -> None:
    manifest, digest = await publish(store, "s1", CONTENT)
    (place / "pages").chmod(0o644)
    plain = await store.stored_bytes("s1")
    assert await store.compress("s1", unused_s=0)
    assert names(place) == PACKED
    assert await store.stored_bytes("s1") < plain / 20
    packed = (place / "pages.zst").stat()
    assert zstandard.ZstdDecompressor().stream_reader((place / "pages.zst").read_bytes()).readall() == CONTENT

    loaded = await asyncio.gather(*(store.load("s1", digest=digest) for _ in range(8)))
    assert steps.seen.count("snapshot.expanded") == 1
    assert all(each == (manifest, manifest.image(place)) for each in loaded)
    assert names(place) == PLAIN | PACKED
    assert (place / "pages").read_bytes() == CONTENT
    facts = (place / "pages").stat()
    assert facts.st_mode & 0o777 == 0o644
    assert facts.st_blocks * 512 < MIB, "pages of zeros are holes"

    assert not await store.compress("s1", unused_s=60), "it was just used"
    assert await store.compress("s1", unused_s=0)
    assert names(place) == PACKED
    assert (place / "pages.zst").stat().st_ino == packed.st_ino, "what was compressed is not compressed again"
    assert (await store.load("s1", digest=digest))[0] == manifest
    await store.remove("s1")
    assert not await store.compress("s1", unused_s=0)


async def test_what_is_loaded_while_it_is_compressed_keeps_its_files(
    store: SnapshotStore, place: Path, steps: Steps
) -> None:
    _, digest = await publish(store, "s1", CONTENT)
    os.utime(place / "manifest.json", (1, 1))
    loads: list[asyncio.Task[object]] = []

    def load(name: str) -> None:
        if name == "snapshot.packed":
            loads.append(asyncio.ensure_future(store.load("s1", digest=digest)))

    steps.then = load
    assert not await store.compress("s1", unused_s=3600)
    await loads[0]
    assert (place / "pages").read_bytes() == CONTENT


def _flip(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(bytes(raw))


def _frame(content: bytes) -> Callable[[Path], None]:
    return lambda path: (path.write_bytes(zstandard.compress(content)), None)[1]


def _bomb(path: Path) -> None:
    path.write_bytes(zstandard.compress(bytes(256 * MIB)))


def _wide(path: Path) -> None:
    """A frame that wants more memory than we give."""
    wide = zstandard.ZstdCompressionParameters(window_log=27, enable_ldm=True)
    writer = zstandard.ZstdCompressor(compression_params=wide).compressobj()
    path.write_bytes(writer.compress(CONTENT) + writer.flush())


def _link(path: Path) -> None:
    path.rename(path.with_suffix(".away"))
    (path.parent.parent / "pages.zst").write_bytes(path.with_suffix(".away").read_bytes())
    path.with_suffix(".away").unlink()
    path.symlink_to(path.parent.parent / "pages.zst")


@pytest.mark.parametrize(
    "harm",
    [
        _flip,
        lambda path: os.truncate(path, path.stat().st_size - 9),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"no zstd"),
        _frame(CONTENT[:-1]),
        _frame(CONTENT[:-1] + b"D"),
        _bomb,
        _wide,
        _link,
        lambda path: path.unlink(),
    ],
    ids=["flipped", "cut", "empty", "other", "short", "changed", "bomb", "wide", "link", "gone"],
)
async def test_a_damaged_or_hostile_file_is_refused(
    store: SnapshotStore, place: Path, harm: Callable[[Path], object]
) -> None:
    digest = await compressed(store)
    harm(place / "pages.zst")
    with pytest.raises(WardianError) as refused:
        await store.load("s1", digest=digest)
    assert refused.value.code == "snapshot_damaged"
    assert "s1" in refused.value.message
    assert "pages" not in names(place)


async def test_what_a_power_cut_left_of_an_expanded_file_is_expanded_again(
    store: SnapshotStore, place: Path
) -> None:
    digest = await compressed(store)
    await store.load("s1", digest=digest)
    (place / "pages").write_bytes(bytes(len(CONTENT)))
    _, image = await store.load("s1", digest=digest)
    assert (image.directory / "pages").read_bytes() == CONTENT


async def test_what_is_damaged_or_hardly_smaller_stays_as_it_is(
    store: SnapshotStore, tmp_path: Path, place: Path
) -> None:
    await publish(store, "s1", random.Random(0).randbytes(MIB))
    await publish(store, "s2", CONTENT)
    _flip(tmp_path / "s/s2/pages")
    for each in ("s1", "s2", "s1"):
        assert not await store.compress(each, unused_s=0)
        assert names(tmp_path / "s" / each) == PLAIN
    await store.load("s1")


async def test_a_packed_file_that_was_harmed_beside_its_plain_one_is_not_relied_on(
    store: SnapshotStore, place: Path
) -> None:
    digest = await compressed(store)
    await store.load("s1", digest=digest)
    _flip(place / "pages.zst")
    assert not await store.compress("s1", unused_s=0)
    assert (await store.load("s1", digest=digest))[0].id == "s1"


def command_lines() -> list[bytes]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            found.append(path.read_bytes())
    return found


def until_filled(directory: Path) -> None:
    while not any(directory.iterdir()):
        time.sleep(0.01)


async def test_it_ends_at_once_when_it_is_cancelled(
    store: SnapshotStore, tmp_path: Path, place: Path
) -> None:
    await publish(store, "s1", CONTENT)
    os.truncate(place / "pages", 2 << 30)  # takes seconds to read, before anybody sees that it is another
    task = asyncio.create_task(store.compress("s1", unused_s=0))
    await asyncio.to_thread(until_filled, tmp_path / "s/.scratch")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert names(place) == PLAIN
    assert not any(str(place).encode() in words for words in command_lines())


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of three megabytes."""
    with small_disk(tmp_path, 3) as disk:
        yield disk


@needs_root
async def test_a_full_disk_is_told_and_nothing_is_lost(disk: Path) -> None:
    store = SnapshotStore(disk / "s")
    try:
        await store.open()
        content = b"words " * 300_000
        _, digest = await publish(store, "s1", content)
        fill(disk)
        with pytest.raises(WardianError) as refused:
            await store.compress("s1", unused_s=0)
        assert refused.value.code == "disk_full"
        assert names(disk / "s/s1") == PLAIN
        (disk / "ballast").unlink()
        assert await store.compress("s1", unused_s=0)
        fill(disk)
        for _ in range(2):
            with pytest.raises(WardianError) as refused:
                await store.load("s1", digest=digest)
            assert refused.value.code == "disk_full"
            assert names(disk / "s/s1") == PACKED
            assert list((disk / "s/.scratch").iterdir()) == []
        (disk / "ballast").unlink()
        _, image = await store.load("s1", digest=digest)
        assert (image.directory / "pages").read_bytes() == content
    finally:
        await store.close()
