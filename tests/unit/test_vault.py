"""The vault: sealed at rest, bound to its place, and nothing of a value in anything we write or say."""

from __future__ import annotations

import asyncio
import base64
import logging
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import Connection, update

from wardian.model.errors import Conflict, Invalid, LimitExceeded, NotFound, Unavailable, WardianError
from wardian.model.secret import Place, Sealed
from wardian.store import secrets as rows
from wardian.store.database import Database
from wardian.store.sealing import Unsealable
from wardian.store.tables import secret, secret_version
from wardian.vault import keys, vault
from wardian.vault.keys import MasterKey, parse
from wardian.vault.opening import reseal, unseal
from wardian.vault.seal import seal
from wardian.vault.vault import Vault

VALUE = "correct-horse-battery-staple"
KEY, OTHER = MasterKey(b"k" * 32), MasterKey(b"o" * 32)
HERE = Place("t1", "sec_1", 1)


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    database = await Database.open(tmp_path / "w.db")
    yield database
    await database.close()


async def reveal(
    vault: Vault, tenant: str, reference: str, version: int | None = None, key: MasterKey = KEY
) -> bytes:
    """As the bridge opens it: the vault itself cannot."""
    return unseal(key, *await vault.sealed(tenant, reference, version))


async def resealed(place: Place, sealed: Sealed) -> Sealed:
    return reseal(KEY, OTHER.sealing, place, sealed)


@pytest.fixture
async def opened(database: Database) -> Vault:
    return await Vault.open(database, KEY.sealing)


def test_a_seal_opens_only_with_its_key_and_in_its_place() -> None:
    sealed = seal(KEY.sealing, HERE, VALUE.encode())
    assert unseal(KEY, HERE, sealed) == VALUE.encode()
    assert unseal(OTHER, HERE, reseal(KEY, OTHER.sealing, HERE, sealed)) == VALUE.encode()
    elsewhere = [Place("t2", "sec_1", 1), Place("t1", "sec_2", 1), Place("t1", "sec_1", 2)]
    for key, place in [(OTHER, HERE), *((KEY, place) for place in elsewhere)]:
        with pytest.raises(Unsealable):
            unseal(key, place, sealed)
    assert VALUE not in repr(sealed)
    assert "k" * 32 not in repr(KEY)
    assert seal(KEY.sealing, HERE, b"same").value != seal(KEY.sealing, HERE, b"same").value


@pytest.mark.parametrize("damage", ["data_key", "value"])
def test_a_changed_bit_is_noticed(damage: str) -> None:
    sealed = seal(KEY.sealing, HERE, VALUE.encode())
    parts = {"data_key": sealed.data_key, "value": sealed.value}
    parts[damage] = parts[damage][:-1] + bytes([parts[damage][-1] ^ 1])
    with pytest.raises(Unsealable):
        unseal(KEY, HERE, Sealed(sealed.key_id, parts["data_key"], parts["value"]))


async def test_versions_names_and_metadata(opened: Vault) -> None:
    made = await opened.create("t1", "  OpenAI-Key ", VALUE, {"a": "b"})
    assert (made.name, made.version, made.metadata) == ("openai-key", 1, {"a": "b"})
    assert made.id.startswith("sec_")
    for number in range(2, vault.VERSIONS_KEPT + 4):
        made = await opened.update("t1", "OPENAI-key" if number % 2 else made.id, f"v{number}", None)
        assert made.version == number
    assert made.metadata == {"a": "b"}
    assert (await opened.update("t1", made.id, "last", {})).metadata == {}
    assert await reveal(opened, "t1", "openai-key") == b"last"
    assert await reveal(opened, "t1", made.id, made.version) == f"v{made.version}".encode()
    with pytest.raises(NotFound):
        await reveal(opened, "t1", made.id, 1)  # only the newest are kept
    with pytest.raises(Conflict):
        await opened.create("t1", "openai-key", "x", {})
    await opened.remove("t1", made.id)
    with pytest.raises(NotFound):
        await opened.describe("t1", "openai-key")


@pytest.mark.parametrize(
    ("name", "value", "metadata"),
    [
        ("", "v", {}),
        ("sec_mine", "v", {}),
        ("a{b", "v", {}),
        ("a/b", "v", {}),
        ("a\nb", "v", {}),
        ("ü" * 65, "v", {}),
        ("n", "", {}),
        ("n", "x" * (64 * 1024 + 1), {}),
        ("n", "\ud800", {}),
        ("n", "v", {str(i): "" for i in range(33)}),
        ("n", "v", {"k" * 129: ""}),
        ("n", "v", {"k": "v" * 1025}),
        ("n", "v", {str(i): "v" * 1000 for i in range(9)}),
    ],
)
async def test_what_is_out_of_bounds_is_refused(
    opened: Vault, name: str, value: str, metadata: dict[str, str]
) -> None:
    with pytest.raises(Invalid) as refused:
        await opened.create("t1", name, value, metadata)
    assert not value or value == "v" or value not in str(refused.value)


async def test_another_tenants_secret_is_none(opened: Vault) -> None:
    made = await opened.create("t1", "n", VALUE, {})
    for ask in (
        opened.describe("t2", made.id),
        opened.update("t2", "n", "mine now", None),
        opened.remove("t2", made.id),
        opened.sealed("t2", made.id),
    ):
        with pytest.raises(NotFound) as refused:
            await ask
        assert refused.value.code == "secret_not_found"
    assert await opened.list("t2", after=None, limit=10) == []
    assert await reveal(opened, "t1", "n") == VALUE.encode()


async def test_a_row_moved_to_another_tenant_does_not_open(opened: Vault, database: Database) -> None:
    made = await opened.create("t1", "n", VALUE, {})

    def steal(conn: Connection) -> None:
        conn.execute(update(secret).where(secret.c.id == made.id), {"tenant_id": "t2"})

    await database.write(steal)
    with pytest.raises(Unsealable):
        await reveal(opened, "t2", "n")


async def test_a_tenant_has_so_many_secrets_and_no_more(
    opened: Vault, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vault, "SECRETS_MAX", 1)
    await opened.create("t1", "one", "v", {})
    with pytest.raises(LimitExceeded):
        await opened.create("t1", "two", "v", {})
    await opened.create("t2", "two", "v", {})


async def test_pages_go_by_name(opened: Vault) -> None:
    for name in ("c", "a", "b"):
        await opened.create("t1", name, "v", {})
    assert [s.name for s in await opened.list("t1", after=None, limit=2)] == ["a", "b"]
    assert [s.name for s in await opened.list("t1", after="b", limit=2)] == ["c"]


async def test_the_wrong_key_is_told_at_the_start(opened: Vault, database: Database) -> None:
    await opened.create("t1", "n", VALUE, {})
    with pytest.raises(Unavailable) as refused:
        await Vault.open(database, OTHER.sealing)
    assert refused.value.code == "vault_key_wrong"
    assert KEY.id in str(refused.value)


async def test_a_new_master_key_takes_over_what_the_old_one_sealed(opened: Vault, database: Database) -> None:
    await opened.create("t1", "n", VALUE, {})
    await opened.update("t1", "n", "second", None)
    rotated = await Vault.open(database, OTHER.sealing, (KEY.id,), resealed)
    assert await reveal(rotated, "t1", "n", 1, OTHER) == VALUE.encode()
    assert await reveal(rotated, "t1", "n", key=OTHER) == b"second"
    assert await database.read(rows.key_ids) == {OTHER.id}
    await Vault.open(database, OTHER.sealing, (KEY.id,), resealed)  # the setting may stay
    with pytest.raises(Unavailable):
        await Vault.open(database, KEY.sealing)


async def test_no_plaintext_is_on_the_disk_or_in_a_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    database = await Database.open(tmp_path / "w.db")
    try:
        opened = await Vault.open(database, KEY.sealing)
        await opened.create("t1", "n", VALUE, {})
        await opened.update("t1", "n", VALUE + "2", None)
        await reveal(opened, "t1", "n")
        with pytest.raises(WardianError):
            await opened.create("t1", "n", VALUE, {})
        await _assert_nowhere(tmp_path)  # in the log of the database, too
    finally:
        await database.close()
    await _assert_nowhere(tmp_path)
    assert VALUE not in caplog.text


async def _assert_nowhere(directory: Path) -> None:
    forms = [VALUE.encode(), base64.b64encode(VALUE.encode())[:-4], VALUE.encode().hex().encode()]
    for path in await asyncio.to_thread(lambda: list(directory.rglob("*"))):
        content = await asyncio.to_thread(path.read_bytes)
        assert not any(form in content for form in forms), path
        assert KEY.secret not in content


async def test_a_sealed_value_tells_its_table_nothing(opened: Vault, database: Database) -> None:
    await opened.create("t1", "n", VALUE, {})
    row = await database.read(lambda conn: conn.execute(secret_version.select()).one())
    assert len(row.value) == 12 + len(VALUE) + 16
    assert len(row.data_key) == 32 + 12 + 32 + 16


@pytest.mark.parametrize("text", [b"x" * 32, b"\0" * 32])
def test_a_key_is_read_as_people_write_it(text: bytes) -> None:
    assert parse(text.hex() + "\n").secret == parse(base64.b64encode(text).decode()).secret == text


@pytest.mark.parametrize("text", ["", "short", "ab" * 31, "!" * 44, "zz" * 32])
def test_what_is_no_key_is_refused(text: str) -> None:
    with pytest.raises(keys.BadVaultKey) as refused:
        parse(text)
    assert not text or text not in str(refused.value)


def test_the_key_file_is_made_once_and_for_us_alone(tmp_path: Path) -> None:
    path = tmp_path / "vault.key"
    made = keys.from_file(path, may_make=True)
    assert path.stat().st_mode & 0o777 == 0o600
    assert keys.from_file(path, may_make=False) == made
    path.chmod(0o640)
    with pytest.raises(Unavailable) as refused:
        keys.from_file(path, may_make=False)
    assert refused.value.code == "key_exposed"
    path.unlink()
    with pytest.raises(Unavailable) as refused:
        keys.from_file(path, may_make=False)
    assert refused.value.code == "vault_key_missing"


def test_a_key_may_come_from_a_command() -> None:
    hexadecimal = os.urandom(32).hex()
    assert keys.from_command(f"{sys.executable} -c 'print(\"{hexadecimal}\")'").secret.hex() == hexadecimal
    for command in ("/nowhere/kms --token hush", f"{sys.executable} -c 'exit(3)'"):
        with pytest.raises(Unavailable) as refused:
            keys.from_command(command)
        assert "hush" not in str(refused.value)


async def test_tokens_that_were_renewed_follow_their_version_and_no_other(opened: Vault) -> None:
    made = await opened.create("t1", "n", "old", {"a": "b"})
    place, following = Place("t1", made.id, 1), Place("t1", made.id, 2)
    renewed = await opened.follow(place, seal(KEY.sealing, following, b"new"))
    assert renewed is not None
    assert (renewed.version, renewed.metadata) == (2, {"a": "b"})
    assert await reveal(opened, "t1", "n") == b"new"
    assert await opened.follow(place, seal(KEY.sealing, following, b"late")) is None
    assert await reveal(opened, "t1", "n") == b"new"


async def test_the_current_version_is_the_newest_and_goes_with_its_secret(opened: Vault) -> None:
    made = await opened.create("t1", "n", "one", {})
    assert await opened.current("t1", made.id) == 1
    await opened.update("t1", "n", "two", None)
    assert await opened.current("t1", made.id) == 2
    await opened.follow(Place("t1", made.id, 2), seal(KEY.sealing, Place("t1", made.id, 3), b"three"))
    assert await opened.current("t1", made.id) == 3
    with pytest.raises(NotFound):
        await opened.current("t2", made.id)
    await opened.remove("t1", "n")
    with pytest.raises(NotFound):
        await opened.current("t1", made.id)


def test_what_seals_cannot_open() -> None:
    sealed = seal(KEY.sealing, HERE, VALUE.encode())
    with pytest.raises(Unsealable):
        unseal(MasterKey(KEY.sealing.raw), HERE, sealed)
    assert KEY.secret not in (KEY.sealing.raw, *sealed.data_key.split(b"k" * 32))
