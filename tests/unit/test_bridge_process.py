"""The bridge's process as the server starts it: where its key comes from, and what it gives up."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

from wardian.bridge.passes import Mint
from wardian.bridge.service import Bridge
from wardian.bridge.supervisor import Keys
from wardian.model.errors import Unavailable, WardianError
from wardian.model.secret import Place, Sealed
from wardian.store import secrets as rows
from wardian.store.database import Database
from wardian.store.sealing import seal
from wardian.vault.keys import MasterKey, from_file
from wardian.vault.opening import unseal

VALUE = "sk-process-test-value"


async def opened(database: Database, directory: Path, keys: Keys | None = None) -> Bridge:
    mint = Mint(bytes(32), 60)
    return await Bridge.open(database, directory / "bridge", mint, keys or Keys(), lambda: 1)


async def test_where_the_key_comes_from_and_how_it_is_changed(tmp_path: Path) -> None:
    database = await Database.open(tmp_path / "w.db")
    given = os.urandom(32)
    command = f"{sys.executable} -c 'print(\"{given.hex()}\")'"
    try:
        bridge = await opened(database, tmp_path)
        made = await bridge.vault.create("t", "n", VALUE, {})
        await bridge.close()
        first = from_file(tmp_path / "bridge" / "vault.key", may_make=False)  # only root and the bridge can
        assert unseal(first, *await bridge.vault.sealed("t", "n")) == VALUE.encode()
        for keys in (Keys(key=given.hex()), Keys(command=command)):
            with pytest.raises(Unavailable) as refused:
                await opened(database, tmp_path, keys)
            assert refused.value.code == "vault_key_wrong"
            assert given.hex() not in repr(keys) + str(refused.value)
        previous = first.secret.hex()
        bridge = await opened(database, tmp_path, Keys(command=command, previous=previous))
        assert await database.read(rows.key_ids) == {MasterKey(given).id}
        _, sealed = await bridge.vault.sealed("t", made.id)
        assert unseal(MasterKey(given), Place("t", made.id, 1), sealed) == VALUE.encode()
        await bridge.close()
        await (await opened(database, tmp_path, Keys(key=given.hex()))).close()
    finally:
        await database.close()


async def test_what_was_sealed_before_there_was_a_public_key_is_taken_over(tmp_path: Path) -> None:
    database, old = await Database.open(tmp_path / "w.db"), MasterKey(os.urandom(32))
    try:
        bridge = await opened(database, tmp_path)
        made = await bridge.vault.create("t", "n", VALUE, {})
        await bridge.close()
        place, data_key = Place("t", made.id, 1), os.urandom(32)
        former = Sealed(
            old.former_id,
            seal(old.secret, data_key, place.bound("key")),
            seal(data_key, VALUE.encode(), place.bound("value")),
        )
        await database.write(lambda conn: rows.replace_seal(conn, place, former))
        with pytest.raises(Unavailable, match=r"WARDIAN_VAULT_KEY_PREVIOUS.*vault\.key") as refused:
            await opened(database, tmp_path)
        assert refused.value.code == "vault_key_wrong"
        bridge = await opened(database, tmp_path, Keys(previous=old.secret.hex()))
        mine = from_file(tmp_path / "bridge" / "vault.key", may_make=False)
        assert unseal(mine, *await bridge.vault.sealed("t", "n")) == VALUE.encode()
        await bridge.close()
    finally:
        await database.close()


async def test_a_key_file_that_is_gone_is_not_made_anew(tmp_path: Path) -> None:
    database = await Database.open(tmp_path / "w.db")
    try:
        bridge = await opened(database, tmp_path)
        await bridge.vault.create("t", "n", VALUE, {})
        await bridge.close()
        (tmp_path / "bridge" / "vault.key").unlink()
        with pytest.raises(WardianError) as refused:
            await opened(database, tmp_path)
        assert refused.value.code == "vault_key_missing"
        (tmp_path / "bridge" / "vault.key").symlink_to("/")  # fails if it was made
    finally:
        await database.close()


async def test_it_comes_again_and_goes_with_its_server(tmp_path: Path) -> None:
    database = await Database.open(tmp_path / "w.db")
    bridge = await opened(database, tmp_path, Keys(key="ab" * 32))
    try:
        first = bridge.pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        async with asyncio.timeout(30):
            while bridge.pid in (None, first):  # noqa: ASYNC110 - there is nothing to be told by
                await asyncio.sleep(0.02)
        second = bridge.pid
    finally:
        await bridge.close()
        await database.close()
    assert second is not None
    with pytest.raises(ProcessLookupError):
        os.kill(second, 0)
