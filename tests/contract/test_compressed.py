"""Compressed snapshots, on every driver: what comes out of one is what went in, as often as it is asked."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from tests.contract.harness import House, Member, lines_of

from wardian.isolation.port import MachineImage
from wardian.model.errors import WardianError
from wardian.snapshots.store import SnapshotStore

SNAPSHOT = "s1"
COUNTER = "i=0; while read line; do i=$((i+1)); echo $i $line; done"


async def counted(member: Member, word: str) -> str:
    """What the one process that counts says to ``word``."""
    (process,) = (each for each in member.guest.processes.values() if each.exit is None)
    lines = lines_of(process)
    await process.write(f"{word}\n".encode())
    return await anext(lines)


async def published(store: SnapshotStore, member: Member) -> None:
    async with store.scratch() as directory:
        image = await member.capture(directory / "image", keep_running=False)
        await store.publish(SNAPSHOT, image, parent=None, created_at=1, facts={})


async def loaded(store: SnapshotStore) -> MachineImage:
    return (await store.load(SNAPSHOT))[1]


def harm_largest(directory: Path) -> None:
    largest = max(directory.glob("*.zst"), key=lambda path: path.stat().st_size)
    raw = bytearray(largest.read_bytes())
    raw[len(raw) // 2] ^= 1
    largest.write_bytes(raw)


async def test_a_compressed_machine_goes_on_as_it_was(house: House, tmp_path: Path) -> None:
    store = SnapshotStore(tmp_path / "snapshots")
    await store.open()
    member = await house.start()
    await member.start("/bin/sh", "-c", COUNTER)
    await member.sh("head -c 3000000 /dev/urandom > /root/noise; cat /root/noise /root/noise > /root/twice")
    sums = await member.sh("cat /root/noise | wc -c; cat /root/twice | wc -c; ls -l /root")
    assert await counted(member, "before") == "1 before"
    await published(store, member)
    plain = await store.stored_bytes(SNAPSHOT)

    assert await store.compress(SNAPSHOT, unused_s=0)
    assert await store.stored_bytes(SNAPSHOT) < plain
    images = await asyncio.gather(loaded(store), loaded(store))
    assert await store.stored_bytes(SNAPSHOT) < 2 * plain
    clones = await asyncio.gather(*(house.restore(image) for image in images))
    for name, clone in zip("ab", clones, strict=True):
        assert await counted(clone, name) == f"2 {name}"
        assert await clone.sh("cat /root/noise | wc -c; cat /root/twice | wc -c; ls -l /root") == sums
        await clone.sh("rm /root/noise")

    assert await store.compress(SNAPSHOT, unused_s=0), "while clones of it run"
    assert await counted(clones[0], "still") == "3 still"
    back = await house.restore(await loaded(store))
    assert await counted(back, "rolled back") == "2 rolled back"
    assert await back.sh("cat /root/noise | wc -c; cat /root/twice | wc -c; ls -l /root") == sums

    assert await store.compress(SNAPSHOT, unused_s=0)
    harm_largest(tmp_path / "snapshots" / SNAPSHOT)
    with pytest.raises(WardianError) as refused:
        await store.load(SNAPSHOT)
    assert refused.value.code == "snapshot_damaged"
    await store.close()
