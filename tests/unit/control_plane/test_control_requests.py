"""Any request: whose it is, how large, how odd, and how its failure is told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest
from tests.unit.control_plane.double import ID, KEY, Service, api_key, refused

from wardian.api.auth import Keyring, new_key
from wardian.api.e2b.front import BODY_BYTES_MAX
from wardian.model.errors import Unavailable, WardianError
from wardian.model.sandbox import Sandbox
from wardian.store.keys import ApiKey


async def test_keys_are_wanted_everywhere_but_for_health(client: httpx.AsyncClient) -> None:
    del client.headers["X-API-KEY"]
    assert (await client.get("/health")).status_code == 200
    message = refused(await client.get("/v2/sandboxes"), 401, "missing_api_key")
    assert message.startswith("API key is missing")
    for key in ("nonsense", new_key(), "e2b_" + "é" * 40):
        answer = await client.get("/v2/sandboxes", headers=[(b"X-API-KEY", key.encode())])
        assert refused(answer, 401, "invalid_api_key").startswith("Invalid API key")
    refused(await client.get("/no/such/path"), 401, "missing_api_key")


async def test_teams_take_a_bearer_token(client: httpx.AsyncClient) -> None:
    del client.headers["X-API-KEY"]
    answer = await client.get("/teams", headers={"Authorization": f"Bearer {KEY}"})
    assert answer.json() == [{"teamID": "t1", "name": "t1", "apiKey": KEY, "isDefault": True}]
    refused(
        await client.get("/v2/sandboxes", headers={"Authorization": f"Bearer {KEY}"}), 401, "missing_api_key"
    )


async def test_bounds_are_told(client: httpx.AsyncClient, service: Service) -> None:
    large = b'{"templateID":"' + b"x" * BODY_BYTES_MAX + b'"}'
    json_type = {"content-type": "application/json"}
    refused(await client.post("/v2/sandboxes", content=large, headers=json_type), 413, "request_too_large")

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(40):
            yield b"x" * 65536

    refused(await client.post("/v2/sandboxes", content=chunks(), headers=json_type), 413, "request_too_large")
    many = {f"x-{n}": "v" for n in range(120)}
    refused(await client.get("/v2/sandboxes", headers=many), 431, "headers_too_large")
    refused(await client.get("/v2/sandboxes", headers={"x": "v" * 40_000}), 431, "headers_too_large")
    assert service.asked == ()


async def test_bodies_may_come_in_pieces(client: httpx.AsyncClient) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for piece in (b'{"templ', b'ateID":', b'"base"}'):
            yield piece

    answer = await client.post(
        "/v2/sandboxes", content=chunks(), headers={"content-type": "application/json"}
    )
    assert answer.status_code == 201


@pytest.mark.parametrize("body", [b"{", b"[]", b'"x"', b"\xff", b"[" * 100_000, b"null", b""])
async def test_nonsense_is_told_apart_from_our_faults(client: httpx.AsyncClient, body: bytes) -> None:
    answer = await client.post("/v2/sandboxes", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert answer.json()["code"] == 400


async def test_unknown_addresses_and_methods(client: httpx.AsyncClient) -> None:
    refused(await client.get("/nowhere"), 404, "no_such_endpoint")
    refused(await client.put("/v2/sandboxes"), 405, "method_not_allowed")


async def test_what_is_worth_trying_again(client: httpx.AsyncClient, service: Service) -> None:
    service.error = Unavailable("busy")
    answer = await client.post("/v2/sandboxes", json={"templateID": "base"})
    assert refused(answer, 503, "unavailable") == "busy"
    assert (answer.headers["retry-after"], answer.headers.get("should-retry")) == ("1", None)


async def test_our_own_faults_are_not_told_in_detail(
    client: httpx.AsyncClient, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(tenant: str, sandbox_id: str) -> Sandbox:
        raise ZeroDivisionError("secret detail")

    monkeypatch.setattr(service, "get", broken)
    answer = await client.get(f"/sandboxes/{ID}")
    assert refused(answer, 500, "internal") == "internal error"
    assert answer.headers["should-retry"] == "false"


async def test_a_revoked_key_is_believed_for_seconds_only() -> None:
    valid, now, asked = {KEY}, [0.0], [0]

    async def find_key(key: str) -> ApiKey | None:
        asked[0] += 1
        return api_key("t1") if key in valid else None

    keyring = Keyring(find_key, clock=lambda: now[0])
    headers = {b"x-api-key": KEY.encode()}
    await asyncio.gather(*(keyring.key_of(headers) for _ in range(3)))
    before = asked[0]
    assert (await keyring.key_of(headers)).tenant == "t1"
    assert asked[0] == before
    valid.clear()
    now[0] = 6.0
    with pytest.raises(WardianError, match="Invalid API key"):
        await keyring.key_of(headers)
