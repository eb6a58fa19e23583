"""One sandbox by its id: told in full, connected, paused, forked, snapshotted, and nobody else's."""

from __future__ import annotations

import httpx
import pytest
from tests.unit.control_plane.double import ID, OTHER_KEY, Service, refused, sandbox

from wardian.model.errors import Conflict, GuestFault, Unavailable
from wardian.model.sandbox import OnTimeout, SandboxSpec, State


@pytest.mark.parametrize("sandbox_id", [ID, f"{ID}-wardian", f"{ID}-6532622b"])
async def test_ids_may_carry_a_client_id(client: httpx.AsyncClient, sandbox_id: str) -> None:
    assert (await client.get(f"/sandboxes/{sandbox_id}")).status_code == 200


async def test_detail_has_everything_the_clients_read(client: httpx.AsyncClient, service: Service) -> None:
    service.sandbox = sandbox(
        state=State.PAUSED,
        spec=SandboxSpec(allow_internet=False, on_timeout=OnTimeout.PAUSE, auto_resume=True),
    )
    told = (await client.get(f"/sandboxes/{ID}")).json()
    assert told["state"] == "paused"
    assert told["startedAt"] == "2023-11-14T22:13:20.000007Z"
    assert told["endAt"] == "2023-11-14T22:18:20.000007Z"
    assert (told["cpuCount"], told["memoryMB"], told["diskSizeMB"]) == (2, 512, 2048)
    assert told["lifecycle"] == {"autoResume": True, "onTimeout": "pause"}
    assert told["network"] == {"allowPublicTraffic": True, "denyOut": ["0.0.0.0/0"]}
    assert told["allowInternetAccess"] is False
    assert told["pauseMode"] == "full"
    assert told["metadata"] == {}


async def test_other_tenants_see_nothing(client: httpx.AsyncClient) -> None:
    for method, path in [
        ("GET", f"/sandboxes/{ID}"),
        ("DELETE", f"/sandboxes/{ID}"),
        ("POST", f"/sandboxes/{ID}/pause"),
        ("POST", f"/sandboxes/{ID}/connect"),
        ("POST", f"/sandboxes/{ID}/fork"),
        ("POST", f"/sandboxes/{ID}/snapshots"),
        ("GET", f"/sandboxes/{ID}/metrics"),
        ("GET", f"/sandboxes/{ID}/logs"),
        ("PUT", f"/sandboxes/{ID}/network"),
    ]:
        answer = await client.request(method, path, headers={"X-API-KEY": OTHER_KEY})
        refused(answer, 404, "sandbox_not_found")
    refused(await client.get("/templates/mine", headers={"X-API-KEY": OTHER_KEY}), 404, "template_not_found")


async def test_connect_tells_a_resumed_sandbox_from_a_running_one(
    client: httpx.AsyncClient, service: Service
) -> None:
    for path in (f"/sandboxes/{ID}/connect", f"/v2/sandboxes/{ID}/connect"):
        service.resumed = False
        assert (await client.post(path, json={"timeout": 10, "memory": True})).status_code == 200
        assert service.asked == (10, True)
        service.resumed = True
        assert (await client.post(path)).status_code == 201
        assert service.asked == (300, True)
        assert (await client.post(path, json={"memory": False})).status_code == 201
        assert service.asked == (300, False)


@pytest.mark.parametrize("path", ["connect", "resume", "fork"])
@pytest.mark.parametrize("key", ["cpuCount", "memoryMB", "diskSizeMB"])
async def test_a_sandbox_cannot_become_larger(
    client: httpx.AsyncClient, service: Service, path: str, key: str
) -> None:
    answer = await client.post(f"/sandboxes/{ID}/{path}", json={"timeout": 10, key: 4096})
    told = refused(answer, 501, "resources_fixed")
    assert key in told
    assert service.asked == ()


async def test_resume_keeps_what_was_decided_at_creation(client: httpx.AsyncClient, service: Service) -> None:
    assert (await client.post(f"/sandboxes/{ID}/resume", json={"autoPause": False})).status_code == 201
    assert service.asked == (15, True)
    answer = await client.post(f"/sandboxes/{ID}/resume", json={"autoPause": True})
    refused(answer, 501, "auto_pause_is_fixed")


async def test_times_are_set_and_extended(client: httpx.AsyncClient, service: Service) -> None:
    assert (await client.post(f"/sandboxes/{ID}/timeout", json={"timeout": 0})).status_code == 204
    assert service.asked == (0,)
    refused(await client.post(f"/sandboxes/{ID}/timeout", json={"timeout": -1}), 400, "bad_timeout")
    refused(await client.post(f"/sandboxes/{ID}/timeout"), 400, "invalid_argument")
    assert (await client.post(f"/sandboxes/{ID}/refreshes", json={"duration": 3600})).status_code == 204
    assert service.asked == (3600,)
    refused(await client.post(f"/sandboxes/{ID}/refreshes", json={"duration": 3601}), 400, "invalid_argument")


async def test_pause_is_strict_and_keeps_what_is_asked_for(
    client: httpx.AsyncClient, service: Service
) -> None:
    answer = await client.post(f"/sandboxes/{ID}/pause", json={"memory": True})
    assert (answer.status_code, answer.content) == (204, b"")
    assert service.asked == (True,)
    assert (await client.post(f"/sandboxes/{ID}/pause", json={"memory": False})).status_code == 204
    assert service.asked == (False,)
    service.error = Conflict("already paused", code="illegal_transition")
    refused(await client.post(f"/sandboxes/{ID}/pause"), 409, "illegal_transition")
    service.error = GuestFault("the guest does not answer")
    refused(await client.post(f"/sandboxes/{ID}/pause"), 502, "guest_fault")
    strict = await client.post(f"/sandboxes/{ID}/pause", json={"requireHealthyGuest": True})
    refused(strict, 409, "sandbox_snapshot_guest_agent_unresponsive")


async def test_forks_are_told_of_one_by_one(client: httpx.AsyncClient, service: Service) -> None:
    service.outcomes = [sandbox(id="i1"), Unavailable("no memory left")]
    answer = await client.post(f"/sandboxes/{ID}/fork", json={"count": 2})
    assert answer.status_code == 201
    assert service.asked == (2, 300, False)
    first, second = answer.json()
    assert first["sandbox"]["sandboxID"] == "i1"
    assert second == {"error": {"code": 503, "message": "no memory left", "error_code": "unavailable"}}
    for count in (0, 101):
        refused(await client.post(f"/sandboxes/{ID}/fork", json={"count": count}), 400, "invalid_argument")


async def test_snapshots_are_named_and_deleted_by_encoded_ids(
    client: httpx.AsyncClient, service: Service
) -> None:
    answer = await client.post(f"/sandboxes/{ID}/snapshots", json={"name": "Ns/snap1:v1"})
    told = {"snapshotID": "snap1", "names": ["ns/snap1:v1"], "isolation": "gvisor"}
    assert (answer.status_code, answer.json()) == (201, told)
    assert (await client.post(f"/sandboxes/{ID}/snapshots")).json()["names"] == []
    refused(await client.post(f"/sandboxes/{ID}/snapshots", json={"name": "../x y"}), 400, "bad_name")
    for encoded in ("ns%2Fsnap1%3Av1", "ns%252Fsnap1%253Av1", "ns/snap1:v1"):
        assert (await client.delete(f"/templates/{encoded}")).status_code == 204
    refused(await client.delete("/templates/absent"), 404, "template_not_found")
    refused(await client.delete("/templates/base"), 403, "template_not_yours")
    await client.get("/snapshots", params={"sandboxID": ID, "name": "x", "limit": 5, "nextToken": "t"})
    assert service.asked == (ID, "x", 5, "t")
