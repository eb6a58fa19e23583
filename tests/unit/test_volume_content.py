"""The content API: a volume's own token, string codes, bodies that stream, all-or-nothing uploads."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from wardian.api.volumes import build_content_plane
from wardian.model.errors import Conflict, LimitExceeded, NotFound
from wardian.model.volume import Volume
from wardian.store.database import Database
from wardian.volumes import service
from wardian.volumes.service import Volumes
from wardian.volumes.tree import Limits

SIZE = 3 << 20


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    database = await Database.open(tmp_path / "w.db")
    yield database
    await database.close()


@pytest.fixture
async def volumes(database: Database, tmp_path: Path) -> AsyncIterator[Volumes]:
    volumes = await Volumes.open(database, tmp_path / "volumes", b"k" * 32, Limits(SIZE, 1000))
    yield volumes
    await volumes.close()


@pytest.fixture
async def volume(volumes: Volumes) -> Volume:
    return await volumes.create("t1", "data")


@pytest.fixture
async def client(volumes: Volumes, volume: Volume) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(build_content_plane(volumes))
    async with httpx.AsyncClient(
        transport=transport,
        base_url=f"http://test/volumecontent/{volume.id}",
        headers={"Authorization": f"Bearer {volumes.token(volume)}"},
    ) as client:
        yield client


def refused(answer: httpx.Response, status: int, code: str) -> None:
    told = answer.json()
    assert (answer.status_code, told["code"]) == (status, code), told
    assert isinstance(told["message"], str)


async def put(client: httpx.AsyncClient, path: str, content: bytes, **query: str) -> httpx.Response:
    return await client.put("/file", params={"path": path, **query}, content=content)


async def test_a_file_and_what_is_told_of_it(client: httpx.AsyncClient) -> None:
    answer = await put(client, "/a.txt", b"hello", uid="5", mode="384")
    told = answer.json()
    assert answer.status_code == 201
    assert {key: told[key] for key in ("name", "path", "type", "size", "mode", "uid", "gid")} == {
        "name": "a.txt",
        "path": "/a.txt",
        "type": "file",
        "size": 5,
        "mode": 0o600,
        "uid": 5,
        "gid": 1000,
    }
    assert (await client.get("/path", params={"path": "a.txt"})).json()["size"] == 5
    got = await client.get("/file", params={"path": "/a.txt"})
    assert (got.content, got.headers["content-length"]) == (b"hello", "5")
    replaced = await put(client, "/a.txt", b"", force="true")
    assert replaced.json()["mode"] == 0o600  # what was there stays unless asked for
    changed = await client.patch("/path", params={"path": "/a.txt"}, json={"mode": 0o640, "gid": 7})
    assert (changed.json()["mode"], changed.json()["gid"], changed.json()["uid"]) == (0o640, 7, 5)


async def test_directories_and_depth(client: httpx.AsyncClient) -> None:
    assert (await client.post("/dir", params={"path": "/d/e", "force": "true"})).status_code == 201
    assert (await client.post("/dir", params={"path": "/d/e", "force": "true"})).status_code == 201
    refused(await client.post("/dir", params={"path": "/d/e"}), 409, "already_exists")
    refused(await client.post("/dir", params={"path": "/x/y"}), 404, "path_not_found")
    refused(await put(client, "/x/y", b""), 404, "path_not_found")
    assert (await put(client, "/x/y", b"", force="true")).status_code == 201

    async def listed(path: str, **query: str) -> list[str]:
        answer = await client.get("/dir", params={"path": path, **query})
        return [item["path"] for item in answer.json()]

    assert await listed("/") == ["/d", "/x"]
    assert await listed("/", depth="2") == ["/d", "/d/e", "/x", "/x/y"]
    refused(await client.get("/dir", params={"path": "/x/y"}), 400, "not_a_directory")
    refused(await client.get("/dir", params={"path": "/no"}), 404, "path_not_found")
    assert (await client.delete("/path", params={"path": "/d"})).status_code == 204
    refused(await client.delete("/path", params={"path": "/d"}), 404, "path_not_found")
    refused(await client.delete("/path", params={"path": "/"}), 403, "not_permitted")
    refused(await client.get("/file", params={"path": "/x"}), 400, "is_a_directory")
    refused(await put(client, "/x", b""), 400, "is_a_directory")


async def test_a_file_is_replaced_only_by_force(client: httpx.AsyncClient) -> None:
    await put(client, "/f", b"old")
    refused(await put(client, "/f", b"new"), 409, "already_exists")
    refused(await put(client, "/f", b"new", force="false"), 409, "already_exists")
    assert (await client.get("/file", params={"path": "/f"})).content == b"old"
    assert (await put(client, "/f", b"new", force="true")).status_code == 201
    assert (await client.get("/file", params={"path": "/f"})).content == b"new"


async def test_bytes_stream_both_ways_in_pieces(client: httpx.AsyncClient) -> None:
    piece = bytes(range(256)) * 1000

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(10):
            yield piece

    answer = await client.put("/file", params={"path": "/big"}, content=pieces())
    assert answer.json()["size"] == 10 * len(piece)
    got = await client.get("/file", params={"path": "/big"})
    assert got.content == piece * 10


async def test_an_upload_that_breaks_off_leaves_the_old_file_and_no_bytes(
    client: httpx.AsyncClient, volumes: Volumes, volume: Volume
) -> None:
    await put(client, "/f", b"old")

    async def broken() -> AsyncIterator[bytes]:
        yield b"x" * (2 << 20)
        raise ConnectionError

    with pytest.raises(ConnectionError):
        await client.put("/file", params={"path": "/f", "force": "true"}, content=broken())
    assert (await client.get("/file", params={"path": "/f"})).content == b"old"
    assert await volumes.do(volume.id, lambda tree: tree.usage) == (3, 2)


async def test_a_full_volume_says_so_and_takes_nothing(
    client: httpx.AsyncClient, volumes: Volumes, volume: Volume
) -> None:
    refused(await put(client, "/f", b"x" * (SIZE + 1)), 507, "volume_full")

    async def undeclared() -> AsyncIterator[bytes]:
        for _ in range(5):
            yield b"x" * (1 << 20)

    refused(await client.put("/file", params={"path": "/f"}, content=undeclared()), 507, "volume_full")
    assert await volumes.do(volume.id, lambda tree: tree.usage) == (0, 1)
    assert (await put(client, "/f", b"x" * SIZE)).status_code == 201


async def test_what_is_removed_while_it_is_read_is_read_to_its_end(
    client: httpx.AsyncClient, volumes: Volumes, volume: Volume
) -> None:
    from wardian.api.volumes.content import open_file

    await put(client, "/f", b"x" * 100)
    node = await volumes.do(volume.id, lambda tree: open_file(tree, path="/f"))
    await client.delete("/path", params={"path": "/f"})
    assert await volumes.do(volume.id, lambda tree: tree.read(node.number, 0, 100)) == b"x" * 100
    await volumes.do(volume.id, lambda tree: tree.release(node.number))
    assert await volumes.do(volume.id, lambda tree: tree.usage) == (0, 1)


@pytest.mark.parametrize(
    "query",
    [
        {},
        {"path": ""},
        {"path": "/", "depth": "-1"},
        {"path": "/", "depth": "1e3"},
        {"path": "/", "depth": "101"},
        {"path": "/", "force": "perhaps"},
        {"path": "/", "mode": "99999"},
        {"path": "/", "uid": "4294967295"},
    ],
)
async def test_parameters_out_of_bounds(client: httpx.AsyncClient, query: dict[str, str]) -> None:
    assert (await client.get("/dir", params=query)).status_code == 400


@pytest.mark.parametrize(
    "body", [b"[]", b"{", b'{"uid": "1"}', b'{"mode": true}', b'{"size": 1}', b" " * 5000]
)
async def test_a_change_takes_an_owner_and_a_mode_only(client: httpx.AsyncClient, body: bytes) -> None:
    assert (await client.patch("/path", params={"path": "/"}, content=body)).is_client_error


async def test_only_its_own_token_opens_a_volume(
    client: httpx.AsyncClient, volumes: Volumes, volume: Volume
) -> None:
    other = await volumes.create("t2", "data")
    tokens = ["", "Bearer", "Bearer x", f"Basic {volumes.token(volume)}", f"Bearer {volumes.token(other)}"]
    for header in tokens:
        refused(
            await client.get("/dir", params={"path": "/"}, headers={"Authorization": header}),
            401,
            "bad_volume_token",
        )
    elsewhere = await client.get(f"http://test/volumecontent/{other.id}/dir", params={"path": "/"})
    nowhere = await client.get("http://test/volumecontent/vol0/dir", params={"path": "/"})
    assert elsewhere.json() == nowhere.json()
    assert elsewhere.status_code == nowhere.status_code == 401
    assert volumes.token(volume) != volumes.token(other)


async def test_other_addresses_and_methods(client: httpx.AsyncClient) -> None:
    refused(await client.get("/nothing", params={"path": "/"}), 404, "no_such_endpoint")
    refused(await client.post("/file", params={"path": "/"}), 405, "method_not_allowed")
    refused(await client.get("/path/x", params={"path": "/"}), 404, "no_such_endpoint")


async def test_a_volume_in_use_cannot_be_deleted(
    volumes: Volumes, volume: Volume, client: httpx.AsyncClient, tmp_path: Path
) -> None:
    await put(client, "/f", b"x")
    volumes.in_use = lambda volume_id: True
    with pytest.raises(Conflict) as error:
        await volumes.delete("t1", volume.id)
    assert error.value.code == "volume_in_use"
    volumes.in_use = lambda volume_id: False
    with pytest.raises(NotFound):
        await volumes.delete("t2", volume.id)
    await volumes.delete("t1", volume.id)
    assert not (tmp_path / "volumes" / volume.id).exists()
    refused(await client.get("/dir", params={"path": "/"}), 401, "bad_volume_token")
    again = await volumes.create("t1", "data")  # the name is free again, the id and the token are new
    assert again.id != volume.id


async def test_what_a_dead_server_began_to_delete_is_gone_after_the_next_start(
    database: Database, volumes: Volumes, volume: Volume, client: httpx.AsyncClient, tmp_path: Path
) -> None:
    from wardian.store import volumes as rows

    await put(client, "/f", b"x")
    await database.write(lambda conn: rows.mark_deleted(conn, volume.id, at=1))
    with pytest.raises(NotFound):
        await volumes.get("t1", volume.id)
    again = await Volumes.open(database, tmp_path / "volumes", b"k" * 32)
    assert not (tmp_path / "volumes" / volume.id).exists()
    await again.close()


async def test_names_are_a_tenants_own_and_counted(volumes: Volumes, monkeypatch: pytest.MonkeyPatch) -> None:
    await volumes.create("t1", "one")
    await volumes.create("t2", "one")
    with pytest.raises(Conflict):
        await volumes.create("t1", "one")
    assert [each.name for each in await volumes.list("t1")] == ["one"]
    monkeypatch.setattr(service, "VOLUMES_MAX", 1)
    with pytest.raises(LimitExceeded):
        await volumes.create("t1", "two")
