"""The control plane's words: what is parsed, what is refused, and how every answer looks.

The service behind it is a double that remembers what it was asked; its behaviour is tested with the real one.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
from sqlalchemy import Connection
from tests.unit.bridges import unstarted_bridge

from wardian.api.auth import Keyring, new_key
from wardian.api.e2b.app import build_control_plane
from wardian.api.e2b.context import ControlPlane, sandbox_unknown
from wardian.api.e2b.front import BODY_BYTES_MAX
from wardian.bridge.service import Bridge
from wardian.builds.builder import Builder
from wardian.builds.service import Builds, House
from wardian.images.roots import Roots
from wardian.isolation.drivers import Drivers, Found
from wardian.isolation.port import Capabilities, IsolationLevel
from wardian.model.egress import Egress, EgressProxy
from wardian.model.errors import Conflict, GuestFault, Invalid, Unavailable, WardianError
from wardian.model.isolation import Wanted
from wardian.model.resources import Resources
from wardian.model.sandbox import OnTimeout, Sandbox, SandboxSpec, Snapshot, State
from wardian.model.template import Build, Template
from wardian.sandboxes.service import ListQuery, Metric, Page, Sandboxes
from wardian.sandboxes.templates import Templates, assign, house_edition
from wardian.store import builds as stored_builds
from wardian.store import keys
from wardian.store import templates as stored_templates
from wardian.store.database import Database
from wardian.store.keys import ApiKey
from wardian.vault.keys import MasterKey
from wardian.vault.vault import Vault
from wardian.volumes.service import Volumes

KEY, OTHER_KEY = new_key(), new_key()
ID = "i0123456789abcdefghi"
ROOT = "sha256:" + "ab" * 32
MADE_AT = 1_700_000_000_123_456
BASE = house_edition("base", root_digest=ROOT, tree=ROOT, resources=Resources(), created_at=MADE_AT)


def api_key(tenant: str) -> ApiKey:
    """A key's record."""
    return ApiKey(f"k-{tenant}", tenant, "", "e2b_", 1, None)


def sandbox(**changes: Any) -> Sandbox:
    made = Sandbox(
        id=ID,
        tenant="t1",
        template_id="tmpl1",
        template_alias="base",
        template_digest=ROOT,
        state=State.RUNNING,
        epoch=1,
        driver="gvisor",
        isolation="gvisor",
        resources=Resources(),
        spec=SandboxSpec(metadata={"a": "b"}),
        access_token="envd-token",
        traffic_token="traffic-token",
        created_at=1_700_000_000_000_000,
        started_at=1_700_000_000_000_007,
        end_at=1_700_000_300_000_007,
    )
    return replace(made, **changes)


class Service(Sandboxes):
    """Remembers the last call; knows one sandbox of one tenant, and fails when told to."""

    def __init__(self) -> None:
        self.asked: tuple[Any, ...] = ()
        self.sandbox = sandbox()
        self.error: WardianError | None = None
        self.resumed = False
        self.outcomes: Sequence[Sandbox | WardianError] = ()
        self.events_held: list[Mapping[str, Any]] = []
        self.wanted = Wanted()

    def within(self, wanted: Wanted) -> Service:
        self.wanted = wanted
        return self

    def may_enter(self, sandbox: Sandbox) -> bool:
        return IsolationLevel(sandbox.isolation).satisfies(self.wanted.minimum)

    def _ask(self, tenant: str, sandbox_id: str, *what: Any) -> Sandbox:
        self.asked = what
        if self.error:
            raise self.error
        if (tenant, sandbox_id) != (self.sandbox.tenant, self.sandbox.id):
            raise sandbox_unknown(sandbox_id)
        return self.sandbox

    async def create(self, tenant: str, spec: SandboxSpec) -> Sandbox:
        self.asked = (tenant, spec)
        if self.error:
            raise self.error
        return replace(self.sandbox, spec=spec)

    async def get(self, tenant: str, sandbox_id: str) -> Sandbox:
        return self._ask(tenant, sandbox_id)

    async def list(self, tenant: str, query: ListQuery) -> Page:
        self.asked = (query,)
        return Page((self.sandbox,), "cursor1" if query.cursor is None else None, 1)

    async def kill(self, tenant: str, sandbox_id: str) -> None:
        self._ask(tenant, sandbox_id)

    async def set_timeout(self, tenant: str, sandbox_id: str, timeout_s: int) -> Sandbox:
        return self._ask(tenant, sandbox_id, timeout_s)

    async def refresh(self, tenant: str, sandbox_id: str, duration_s: int) -> Sandbox:
        return self._ask(tenant, sandbox_id, duration_s)

    async def connect(
        self, tenant: str, sandbox_id: str, timeout_s: int | None, *, memory: bool = True
    ) -> tuple[Sandbox, bool]:
        return self._ask(tenant, sandbox_id, timeout_s, memory), self.resumed

    async def set_network(
        self, tenant: str, sandbox_id: str, *, egress: Egress, allow_internet: bool
    ) -> Sandbox:
        return self._ask(tenant, sandbox_id, egress, allow_internet)

    async def pause(self, tenant: str, sandbox_id: str, *, memory: bool = True) -> Sandbox:
        return self._ask(tenant, sandbox_id, memory)

    async def resume(
        self, tenant: str, sandbox_id: str, timeout_s: int | None, *, memory: bool = True
    ) -> Sandbox:
        return self._ask(tenant, sandbox_id, timeout_s, memory)

    async def fork(
        self, tenant: str, sandbox_id: str, *, count: int, timeout_s: int | None
    ) -> Sequence[Sandbox | WardianError]:
        self._ask(tenant, sandbox_id, count, timeout_s)
        return self.outcomes

    async def snapshot(
        self, tenant: str, sandbox_id: str, *, name: str | None, memory: bool = True
    ) -> Snapshot:
        self._ask(tenant, sandbox_id, name, memory)
        names = (name,) if name else ()
        return Snapshot(
            "snap1",
            tenant,
            sandbox_id,
            "tmpl1",
            "named",
            names,
            None,
            "d",
            1,
            1,
            ROOT,
            Resources(),
            isolation="gvisor",
        )

    async def list_snapshots(
        self, tenant: str, *, sandbox_id: str | None, name: str | None, limit: int, cursor: str | None
    ) -> tuple[Sequence[Snapshot], str | None]:
        self.asked = (sandbox_id, name, limit, cursor)
        return [], None

    async def delete_snapshot(self, tenant: str, snapshot_id: str) -> None:
        self.asked = (snapshot_id,)
        if snapshot_id != "ns/snap1:v1":
            raise sandbox_unknown(snapshot_id)

    async def forget_builds(self, builds: Sequence[Build], snapshot_ids: Sequence[str]) -> None:
        self.asked = tuple(build.template_id for build in builds)

    async def metrics(
        self, tenant: str, sandbox_id: str, start_us: int | None, end_us: int | None
    ) -> Sequence[Metric]:
        self._ask(tenant, sandbox_id, start_us, end_us)
        return [Metric(1_700_000_000_500_000, 2, 12.5, 1, 2, 3, 4, 5)]

    async def events(
        self, tenant: str, sandbox_id: str, *, after_seq: int = 0, limit: int = 1000
    ) -> Sequence[Mapping[str, Any]]:
        self._ask(tenant, sandbox_id)
        return [event for event in self.events_held if event["seq"] > after_seq][:limit]


@pytest.fixture
def service() -> Service:
    return Service()


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    database = await Database.open(tmp_path / "wardian.db")
    yield database
    await database.close()


@pytest.fixture
async def vault(database: Database) -> Vault:
    return await Vault.open(database, MasterKey(bytes(32)).sealing)


@pytest.fixture
async def bridge(database: Database, tmp_path: Path) -> Bridge:
    return await unstarted_bridge(database, tmp_path)


@pytest.fixture
async def volumes(database: Database, tmp_path: Path) -> AsyncIterator[Volumes]:
    volumes = await Volumes.open(database, tmp_path / "volumes", bytes(32))
    yield volumes
    await volumes.close()


@pytest.fixture
async def templates(database: Database) -> Templates:
    """``base`` is the house's; ``mine`` the tenant's own."""
    own = Template("tmpl2", "mine", "t1", MADE_AT - 1, MADE_AT - 1)

    def write(conn: Connection) -> None:
        for tenant in ("t1", "t2"):
            keys.add_tenant(conn, tenant, name=tenant, at=1)
        stored_templates.add(conn, own)
        build = replace(BASE.build, id=str(uuid4()), template_id=own.id)
        stored_builds.add(conn, build)
        assign(conn, build, ("default",), MADE_AT)

    await database.write(write)
    templates = Templates(database)
    await templates.install(BASE)
    return templates


class Idle(Builder):
    """No test here gets as far as building."""

    def __init__(self) -> None:
        pass


@pytest.fixture
def builds(database: Database, service: Service, templates: Templates, tmp_path: Path) -> Builds:
    drivers = Drivers([Found(None, Capabilities("none", IsolationLevel.GVISOR, usable=False, reason="none"))])
    house = House(database, templates, service, Roots(tmp_path / "roots"), Idle(), drivers, lambda _: None)
    return Builds(house, tmp_path / "builds")


@pytest.fixture
async def client(
    service: Service,
    templates: Templates,
    builds: Builds,
    vault: Vault,
    volumes: Volumes,
    bridge: Bridge,
) -> AsyncIterator[httpx.AsyncClient]:
    async def find_key(key: str) -> ApiKey | None:
        return {KEY: api_key("t1"), OTHER_KEY: api_key("t2")}.get(key)

    async def check_egress(egress: Egress) -> None:
        if egress.dns_servers == ("10.0.0.1",):
            raise Invalid("DNS server 10.0.0.1 may not be reached: private", code="dns_server_denied")

    def seal(text: str, context: str) -> str:
        return f"sealed {len(text)} for {context}"

    plane = ControlPlane(
        service,
        templates,
        builds,
        domain="sandbox.test:99",
        timeout_max_s=24 * 3600,
        check_egress=check_egress,
        seal=seal,
        vault=vault,
        volumes=volumes,
        bridge=bridge,
    )
    transport = httpx.ASGITransport(build_control_plane(plane, Keyring(find_key)), raise_app_exceptions=False)
    async with httpx.AsyncClient(
        transport=transport, base_url="http://test", headers={"X-API-KEY": KEY}
    ) as client:
        yield client


def refused(answer: httpx.Response, status: int, code: str) -> str:
    """Check an error's shape; return its message."""
    body = answer.json()
    assert (answer.status_code, body["code"], body["error_code"]) == (status, status, code)
    return str(body["message"])


async def test_create_v2_says_what_was_asked_and_what_is_needed(
    client: httpx.AsyncClient, service: Service
) -> None:
    body = {
        "templateID": "Base:default",
        "timeout": 60,
        "metadata": {"a": "b c"},
        "envVars": {"X": "1"},
        "autoPause": True,
        "autoPauseMemory": True,
        "autoResume": {"enabled": True},
        "allow_internet_access": False,
        "network": {"allowPublicTraffic": False, "maskRequestHost": "localhost:${PORT}"},
        "mcp": None,
        "volumeMounts": [],
    }
    answer = await client.post("/v2/sandboxes", json=body, headers={"Idempotency-Key": "once-1"})
    assert answer.status_code == 201
    assert answer.json() == {
        "sandboxID": ID,
        "templateID": "tmpl1",
        "alias": "base",
        "clientID": "wardian",
        "envdVersion": "0.6.13",
        "envdAccessToken": "envd-token",
        "trafficAccessToken": "traffic-token",
        "domain": "sandbox.test:99",
        "isolation": "gvisor",
    }
    assert service.asked == (
        "t1",
        SandboxSpec(
            template="base",
            timeout_s=60,
            metadata={"a": "b c"},
            env={"X": "1"},
            on_timeout=OnTimeout.PAUSE,
            auto_resume=True,
            allow_internet=False,
            allow_public_traffic=False,
            mask_request_host="localhost:${PORT}",
            idempotency_key="once-1",
        ),
    )


@pytest.mark.parametrize(("path", "seconds"), [("/v2/sandboxes", 300), ("/sandboxes", 15)])
async def test_a_timeout_left_out_is_the_version_s_default(
    client: httpx.AsyncClient, service: Service, path: str, seconds: int
) -> None:
    assert (await client.post(path, json={"templateID": "base"})).status_code == 201
    assert service.asked[1].timeout_s == seconds


async def test_the_first_version_may_ask_for_an_open_sandbox(
    client: httpx.AsyncClient, service: Service
) -> None:
    service.sandbox = sandbox(access_token=None)
    answer = await client.post("/sandboxes", json={"templateID": "base", "secure": False})
    assert service.asked[1].secure is False
    assert "envdAccessToken" not in answer.json()
    assert answer.json()["trafficAccessToken"] is None


@pytest.mark.parametrize(
    ("more", "status", "code"),
    [
        ({"timeout": 0}, 400, "bad_timeout"),
        ({"timeout": -1}, 400, "bad_timeout"),
        ({"timeout": 24 * 3600 + 1}, 400, "bad_timeout"),
        ({"timeout": "60"}, 400, "invalid_argument"),
        ({"timeout": True}, 400, "invalid_argument"),
        ({"metadata": {"a": 1}}, 400, "invalid_argument"),
        ({"metadata": {str(n): "" for n in range(513)}}, 400, "too_many_entries"),
        ({"envVars": {"A=B": "x"}}, 400, "bad_env"),
        ({"envVars": {"": "x"}}, 400, "bad_env"),
        ({"envVars": {"A": "x\0"}}, 400, "bad_env"),
        ({"envVars": {"A": "x" * 300_000}}, 400, "too_large"),
        ({"autoPauseMemory": False}, 400, "bad_lifecycle"),
        (
            {"autoPause": True, "autoPauseMemory": False, "autoResume": {"enabled": True}},
            400,
            "bad_lifecycle",
        ),
        ({"mcp": {"exa": {"apiKey": "x" * 300_000}}}, 400, "too_large"),
        ({"volumeMounts": [{"name": "v", "path": "/v"}]}, 400, "volume_not_found"),
        ({"volumeMounts": [{"name": "../v", "path": "/v"}]}, 400, "bad_volume_name"),
        ({"volumeMounts": [{"name": "v", "path": "v"}]}, 400, "bad_mount_path"),
        ({"volumeMounts": [{"name": "v", "path": "/"}]}, 400, "bad_mount_path"),
        ({"volumeMounts": [{"name": "v", "path": "//"}]}, 400, "bad_mount_path"),
        ({"volumeMounts": [{"name": "v", "path": "/a/../proc/1"}]}, 400, "bad_mount_path"),
        (
            {"volumeMounts": [{"name": "v", "path": "/a"}, {"name": "w", "path": "/a/b"}]},
            400,
            "bad_mount_path",
        ),
        ({"volumeMounts": [{"name": "v", "path": "/v", "readOnly": True}]}, 501, "unknown_option"),
        ({"iam": {"tokens": {"a": {}}}}, 501, "iam_unsupported"),
        ({"network": {"allowOut": ["example.com"]}}, 400, "domains_need_deny_all"),
        ({"network": {"allowOut": ["*"], "denyOut": ["0.0.0.0/0"]}}, 400, "bad_allowed_entry"),
        ({"network": {"allowOut": ["0x7f.1"], "denyOut": ["0.0.0.0/0"]}}, 400, "bad_allowed_entry"),
        ({"network": {"allowOut": ["1.1.1.1"] * 513}}, 400, "too_many_entries"),
        ({"network": {"denyOut": ["example.com"]}}, 400, "bad_denied_cidr"),
        (
            {"network": {"rules": {"a.test": [{"transform": {"headers": {"a": "b"}}}]}}},
            501,
            "network_rules_unsupported",
        ),
        ({"network": {"egressProxy": {"address": "p"}}}, 400, "bad_egress_proxy"),
        ({"network": {"egressProxy": {"address": "p:0"}}}, 400, "bad_egress_proxy"),
        ({"network": {"egressProxy": {"address": "p.test:1", "password": "x"}}}, 400, "bad_egress_proxy"),
        (
            {"network": {"egressProxy": {"address": "p.test:1", "username": "é" * 128}}},
            400,
            "bad_egress_proxy",
        ),
        (
            {"network": {"egressProxy": {"address": "p.test:1", "tls": {"enabled": False, "caCert": "x"}}}},
            400,
            "bad_egress_proxy",
        ),
        ({"network": {"httpsPorts": [49983]}}, 400, "bad_https_port"),
        ({"network": {"httpsPorts": [0]}}, 400, "bad_https_port"),
        ({"network": {"httpsPorts": [1] * 129}}, 400, "too_many_entries"),
        ({"network": {"dnsServers": ["dns.test"]}}, 400, "bad_dns_server"),
        ({"network": {"dnsServers": ["::1"]}}, 400, "bad_dns_server"),
        ({"network": {"dnsServers": ["1.1.1.1"] * 11}}, 400, "too_many_entries"),
        ({"network": {"dnsServers": ["10.0.0.1"]}}, 400, "dns_server_denied"),
        ({"network": {"maskRequestHost": "a b"}}, 400, "bad_host_mask"),
        ({"network": {"newest": 1}}, 501, "unknown_option"),
        ({"gpu": {"count": 1}}, 501, "unknown_option"),
        ({"secure": False}, 400, "unknown_option"),
        ({"templateID": ""}, 400, "invalid_argument"),
        ({"templateID": None}, 400, "invalid_argument"),
    ],
)
async def test_what_cannot_be_done_is_refused_before_anything_happens(
    client: httpx.AsyncClient, service: Service, more: dict[str, Any], status: int, code: str
) -> None:
    answer = await client.post("/v2/sandboxes", json={"templateID": "base"} | more)
    assert refused(answer, status, code)
    assert answer.headers.get("should-retry") == ("false" if status == 501 else None)
    assert service.asked == ()


async def test_unknown_options_that_say_nothing_are_let_pass(
    client: httpx.AsyncClient, service: Service
) -> None:
    body: dict[str, Any] = {
        "templateID": "base",
        "gpu": None,
        "newest": False,
        "network": {"x": []},
        "iam": {"tokens": {}},
    }
    assert (await client.post("/v2/sandboxes", json=body)).status_code == 201


async def test_messages_are_the_protocols(client: httpx.AsyncClient) -> None:
    answer = await client.post("/v2/sandboxes", json={"templateID": "base", "timeout": 0})
    assert refused(answer, 400, "bad_timeout") == "Timeout must be greater than 0"
    answer = await client.post("/v2/sandboxes", json={"templateID": "base", "timeout": 10**9})
    assert refused(answer, 400, "bad_timeout") == "Timeout cannot be greater than 24 hours"
    answer = await client.get("/sandboxes/inobody")
    expected = "Sandbox \"inobody\" doesn't exist or you don't have access to it"
    assert refused(answer, 404, "sandbox_not_found") == expected


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
    assert service.asked == (2, 300)
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


async def test_a_listing_is_filtered_ordered_and_paged(client: httpx.AsyncClient, service: Service) -> None:
    answer = await client.get(
        "/v2/sandboxes?metadata=a%252520b%3Dc%252526d%26e%3D%25252B&state=running%2Cpaused&limit=7&order=asc"
        "&startedAfter=2023-11-14T22:13:20.5Z&template=Base"
    )
    assert service.asked == (
        ListQuery(
            states=frozenset({"running", "paused"}),
            metadata={"a b": "c&d", "e": "+"},
            template="base",
            started_after_us=1_700_000_000_000_000,
            ascending=True,
            limit=7,
        ),
    )
    assert answer.headers["x-next-token"] == "cursor1"
    assert answer.headers["x-total-running"] == "1"
    assert answer.json()[0]["endAt"] == "2023-11-14T22:18:20.000007Z"
    last = await client.get("/v2/sandboxes", params={"nextToken": "cursor1"})
    assert "x-next-token" not in last.headers
    await client.get("/sandboxes")
    assert service.asked[0].states == frozenset({"running"})


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("limit=0", "bad_limit"),
        ("limit=101", "bad_limit"),
        ("limit=x", "invalid_argument"),
        ("order=up", "bad_order"),
        ("state=asleep", "bad_state"),
        ("startedAfter=yesterday", "bad_time"),
        ("metadata=novalue", "bad_metadata_filter"),
        ("nextToken=" + "x" * 600, "bad_cursor"),
    ],
)
async def test_a_bad_listing_is_refused(client: httpx.AsyncClient, query: str, code: str) -> None:
    refused(await client.get(f"/v2/sandboxes?{query}"), 400, code)


async def test_metrics_in_the_protocols_units(client: httpx.AsyncClient, service: Service) -> None:
    answer = await client.get(f"/sandboxes/{ID}/metrics", params={"start": 5, "end": 6})
    assert service.asked == (5_000_000, 6_999_999)
    assert answer.json() == [
        {
            "timestamp": "2023-11-14T22:13:20.500000Z",
            "timestampUnix": 1_700_000_000,
            "cpuCount": 2,
            "cpuUsedPct": 12.5,
            "memUsed": 1,
            "memTotal": 2,
            "memCache": 3,
            "diskUsed": 4,
            "diskTotal": 5,
        }
    ]
    many = (await client.get("/sandboxes/metrics", params={"sandbox_ids": f"{ID},igone"})).json()
    assert set(many["sandboxes"]) == {ID}


async def test_logs_are_the_events(client: httpx.AsyncClient, service: Service) -> None:
    service.events_held = [
        {"seq": n, "at": n * 1_000_000, "type": kind, "pid": n, "prev": "0"}
        for n, kind in enumerate(["created", "process_started", "pause_failed"], start=1)
    ]
    v1 = (await client.get(f"/sandboxes/{ID}/logs", params={"start": 2000})).json()
    assert [entry["fields"]["event"] for entry in v1["logEntries"]] == ["process_started", "pause_failed"]
    line = json.loads(v1["logs"][0]["line"])
    assert (line["message"], line["level"], line["pid"]) == ("process started: pid=2", "info", "2")

    async def found(**query: Any) -> list[str]:
        answer = await client.get(f"/v2/sandboxes/{ID}/logs", params=query)
        return [entry["message"].partition(":")[0] for entry in answer.json()["logs"]]

    assert await found() == ["created", "process started", "pause failed"]
    assert await found(direction="backward", limit=2) == ["pause failed", "process started"]
    assert await found(direction="backward", cursor=2000) == ["process started", "created"]
    assert await found(level="error") == ["pause failed"]
    assert await found(search="process") == ["process started"]
    assert await found(cursor=2000, limit=1) == ["process started"]


async def test_long_logs_are_read_in_pages(client: httpx.AsyncClient, service: Service) -> None:
    service.events_held = [{"seq": n, "at": n, "type": "x", "prev": ""} for n in range(1, 2501)]
    answer = await client.get(f"/v2/sandboxes/{ID}/logs", params={"direction": "backward", "limit": 1000})
    logs = answer.json()["logs"]
    assert (len(logs), logs[0]["fields"]["seq"], logs[-1]["fields"]["seq"]) == (1000, "2500", "1501")


async def test_templates_are_looked_at_published_and_deleted(client: httpx.AsyncClient) -> None:
    for path in ("/templates", "/v2/templates"):
        told = (await client.get(path)).json()
        assert [(one["templateID"], one["public"]) for one in told] == [("base", True), ("tmpl2", False)]
    assert [one["templateID"] for one in (await client.get("/default-templates")).json()] == ["base"]
    assert (await client.get("/templates/aliases/base")).json() == {"templateID": "base", "public": True}
    builds = (await client.get("/templates/base")).json()["builds"]
    assert builds[0]["buildID"] == BASE.build.id
    refused(await client.get("/templates/aliases/none"), 404, "template_not_found")
    refused(await client.patch("/v2/templates/base", json={"public": False}), 403, "template_not_yours")
    assert (await client.patch("/v2/templates/mine", json={"public": True})).json() == {"names": ["t1/mine"]}
    elsewhere = {"X-API-KEY": OTHER_KEY}
    assert (await client.get("/templates/aliases/t1/mine", headers=elsewhere)).json()["public"] is True
    assert (await client.delete("/templates/mine", headers=elsewhere)).status_code == 404
    assert (await client.delete("/templates/mine")).status_code == 204
    refused(await client.get("/templates/mine"), 404, "template_not_found")


@pytest.mark.parametrize("path", ["/api-keys", "/access-tokens"])
async def test_absent_parts_say_so(client: httpx.AsyncClient, path: str) -> None:
    answer = await client.get(path)
    assert (answer.status_code, answer.headers["should-retry"]) == (501, "false")


NETWORK: dict[str, Any] = {
    "allowOut": ["1.1.1.1", "8.8.8.0/24", "*.Example.com"],
    "denyOut": ["0.0.0.0/0"],
    "dnsServers": ["9.9.9.9"],
    "egressProxy": {
        "address": "proxy.test:1080",
        "username": "me",
        "password": "hunter2",
        "tls": {"enabled": True, "serverName": "socks.test", "caCert": "PEM"},
    },
}
EGRESS = Egress(
    allow=("1.1.1.1", "8.8.8.0/24", "*.Example.com"),
    deny=("0.0.0.0/0",),
    dns_servers=("9.9.9.9",),
    proxy=EgressProxy(
        "proxy.test:1080",
        "me",
        "sealed 7 for proxy.test:1080",
        tls=True,
        server_name="socks.test",
        ca_cert="PEM",
    ),
)


async def test_network_settings_are_taken_at_creation_and_told_without_what_is_secret(
    client: httpx.AsyncClient, service: Service
) -> None:
    network = NETWORK | {"maskRequestHost": "${PORT}-mine.example.com", "httpsPorts": [8443]}
    answer = await client.post("/v2/sandboxes", json={"templateID": "base", "network": network})
    assert answer.status_code == 201
    spec = service.asked[1]
    assert (spec.egress, spec.https_ports, spec.allow_internet) == (EGRESS, (8443,), True)
    assert spec.granted_hosts == ()
    service.sandbox = sandbox(spec=spec)
    told = (await client.get(f"/sandboxes/{ID}")).json()["network"]
    assert told == network | {
        "allowPublicTraffic": True,
        "egressProxy": {
            "address": "proxy.test:1080",
            "username": "me",
            "tls": {"enabled": True, "serverName": "socks.test"},
        },
    }


async def test_a_change_of_the_network_replaces_everything(
    client: httpx.AsyncClient, service: Service
) -> None:
    path = f"/sandboxes/{ID}/network"
    assert (await client.put(path, json=NETWORK | {"allow_internet_access": True})).status_code == 204
    assert service.asked == (EGRESS, True)
    empty: tuple[dict[str, Any] | None, ...] = ({}, {"allowOut": [], "denyOut": []}, None)
    for nothing in empty:
        assert (await client.put(path, json=nothing)).status_code == 204
        assert service.asked == (Egress(), True)
    assert (await client.put(path, json={"allow_internet_access": False})).status_code == 204
    assert service.asked == (Egress(), False)
    message = refused(await client.put(path, json={"denyOut": ["evil.test"]}), 400, "bad_denied_cidr")
    assert message == "invalid denied CIDR evil.test"
    refused(await client.put(path, json={"httpsPorts": [8443]}), 501, "unknown_option")
    refused(await client.put("/sandboxes/inobody/network", json={"denyOut": ["x"]}), 404, "sandbox_not_found")


async def test_no_request_grants_hosts(client: httpx.AsyncClient, service: Service) -> None:
    """What only the server may open cannot be asked for, in whatever place and spelling."""
    grant = [{"host": "index.test", "port": 80}]
    for name in ("granted_hosts", "grantedHosts"):
        for body in ({name: grant}, {"network": {name: grant}}):
            answer = await client.post("/v2/sandboxes", json={"templateID": "base"} | body)
            refused(answer, 501, "unknown_option")
        refused(await client.put(f"/sandboxes/{ID}/network", json={name: grant}), 501, "unknown_option")


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
