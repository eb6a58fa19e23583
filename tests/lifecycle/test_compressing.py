"""Which snapshots are compressed, and when: what is at rest, and nothing that anybody is made from."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from pathlib import Path

import pytest
from tests.lifecycle.house import TENANT, House
from tests.lifecycle.test_real_machines import counting, moves_on

from wardian.model.errors import WardianError
from wardian.model.sandbox import Sandbox, SandboxSpec, State
from wardian.sandboxes.compressing import Compressor
from wardian.store import snapshots


def pause_of(house: House, sandbox: Sandbox) -> str:
    return house.sandboxes.roster.owners[sandbox.id].sandbox.snapshot_id or ""


async def test_what_is_at_rest_is_compressed_and_nothing_else(real: House) -> None:
    verbs, database = real.sandboxes, real.works.database
    sandbox = await counting(real)
    kept = await verbs.snapshot(TENANT, sandbox.id, name="kept")
    warmth = replace(kept, id="swarmth", kind=snapshots.WARMTH, names=())
    await database.write(lambda conn: snapshots.add(conn, warmth))
    await verbs.pause(TENANT, sandbox.id)
    paused = pause_of(real, sandbox)
    now, later = Compressor(real.works, 0), Compressor(real.works, 3600)

    assert await later.round() == []
    plain = await verbs.stored_bytes(kept)
    assert await now.round() == [kept.id, paused]
    packed = await verbs.stored_bytes(kept)
    assert packed < plain / 2
    assert (await verbs.get_snapshot(TENANT, "kept")).size_bytes == kept.size_bytes > 2 * packed

    clone = await verbs.create(TENANT, SandboxSpec(template="kept"))
    await moves_on(real, clone.id, "0")
    assert await now.round() == [], "a sandbox runs that was made from it"
    await verbs.resume(TENANT, sandbox.id, 60)
    await moves_on(real, sandbox.id, "0")
    await verbs.kill(TENANT, clone.id)
    assert await later.round() == [], "it was used a moment ago"
    assert await now.round() == [kept.id]

    await verbs.kill(TENANT, sandbox.id)
    await verbs.delete_snapshot(TENANT, "kept")
    await database.write(lambda conn: snapshots.remove(conn, warmth.id))
    usage = await verbs.usage(TENANT, 0, real.works.now_us())
    assert usage.stored_byte_us > usage.storage_us * 2 * packed, (
        "what is billed is the size, as it was before"
    )


def flip(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


def until_gone(path: Path) -> None:
    while path.exists():
        time.sleep(0.01)


async def test_it_looks_by_itself_until_it_is_closed(real: House) -> None:
    sandbox = await counting(real)
    await real.sandboxes.pause(TENANT, sandbox.id)
    compressor = Compressor(real.works, 0.1)
    compressor.start()
    never = Compressor(real.works, 0)
    never.start()
    await never.close()
    directory = real.data / "snapshots" / pause_of(real, sandbox)
    await asyncio.to_thread(until_gone, directory / "pages.data")
    await compressor.close()

    await asyncio.to_thread(flip, directory / "pages.data.zst")
    with pytest.raises(WardianError) as refused:
        await real.sandboxes.resume(TENANT, sandbox.id, 60)
    assert refused.value.code == "snapshot_damaged"
    assert real.sandboxes.roster.owners[sandbox.id].sandbox.state is State.PAUSED
    await asyncio.to_thread(flip, directory / "pages.data.zst")
    await real.sandboxes.resume(TENANT, sandbox.id, 60)
    await moves_on(real, sandbox.id, "0")
    await real.sandboxes.kill(TENANT, sandbox.id)
