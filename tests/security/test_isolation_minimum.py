"""A key that demands a wall gets nothing behind a weaker one, by whatever way it comes in."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import Connection
from tests.lifecycle.fakes import ROOT, SMALL, MemoryDriver, World
from tests.lifecycle.house import TENANT, House
from tests.unit.bridges import unstarted_bridge

import wardian.api
from wardian.api.auth import Keyring, new_key
from wardian.api.e2b.app import build_control_plane
from wardian.api.e2b.context import ControlPlane
from wardian.api.wardian import builds as own_builds
from wardian.builds.builder import Builder
from wardian.builds.service import Builds
from wardian.builds.service import House as BuildHouse
from wardian.images.roots import Roots
from wardian.model.build import Built, Plan
from wardian.model.egress import Egress
from wardian.model.errors import WardianError
from wardian.model.isolation import Isolation, IsolationLevel
from wardian.model.sandbox import State
from wardian.sandboxes.templates import house_edition
from wardian.sandboxes.workshop import Options
from wardian.store import keys
from wardian.store.keys import ApiKey
from wardian.vault.keys import MasterKey
from wardian.vault.vault import Vault
from wardian.volumes.service import Volumes

STRICT, LAX = new_key(), new_key()
KVM = IsolationLevel.MICROVM_KVM
HEADER = "X-Wardian-Isolation"


class Foreman(Builder):
    """A builder that only says what it was told."""

    def __init__(self) -> None:
        self.told: list[tuple[Plan, IsolationLevel | None]] = []

    async def build(self, plan: Plan, *, minimum: IsolationLevel | None = None, **_: Any) -> Built:
        self.told.append((plan, minimum))
        raise WardianError("nothing is built here")


@dataclass
class Fort:
    """A server with a weak and a strong driver, and a client for each of two keys of one tenant."""

    house: House
    weak: World
    strong: World
    strict: httpx.AsyncClient
    lax: httpx.AsyncClient
    foreman: Foreman
    builds: Builds

    async def made(self, client: httpx.AsyncClient, **body: Any) -> dict[str, Any]:
        answer = await client.post("/v2/sandboxes", json={"templateID": "base", **body})
        assert answer.status_code == 201, answer.text
        told: dict[str, Any] = answer.json()
        return told


async def fort_on(data: Path, weak: World, strong: World) -> Fort:
    drivers = [MemoryDriver(weak), MemoryDriver(strong)]
    house = await House.open(
        data, drivers, ROOT, resources=SMALL, options=Options(freeze_idle=False, guest_timeout_s=30)
    )
    database = house.works.database
    quick = house_edition("quick", root_digest=ROOT.digest, tree="t", resources=SMALL, created_at=2)
    await house.templates.install(replace(quick, build=replace(quick.build, isolation=Isolation.GVISOR)))

    def write(conn: Connection) -> None:
        keys.add_tenant(conn, TENANT, name=TENANT, at=1)
        for key, minimum in ((STRICT, KVM), (LAX, None)):
            if keys.find(conn, key) is None:
                keys.add_key(
                    conn, key, key_id=key, tenant_id=TENANT, name="", at=1, minimum_isolation=minimum
                )

    await database.write(write)
    foreman = Foreman()
    works = house.works
    builds = Builds(
        BuildHouse(
            database,
            house.templates,
            house.sandboxes,
            Roots(data / "roots"),
            foreman,
            works.drivers,
            works.lease.fence,
        ),
        data / "builds",
    )
    volumes = await Volumes.open(database, data / "volumes", bytes(32))

    async def check_egress(egress: Egress) -> None:
        return None

    plane = ControlPlane(
        house.sandboxes,
        house.templates,
        builds,
        domain=None,
        timeout_max_s=3600,
        check_egress=check_egress,
        seal=lambda text, context: text,
        vault=await Vault.open(database, MasterKey(bytes(32)).sealing),
        volumes=volumes,
        bridge=await unstarted_bridge(database, data),
    )

    async def find_key(key: str) -> ApiKey | None:
        return await database.read(lambda conn: keys.find(conn, key))

    app = build_control_plane(plane, Keyring(find_key), more=[own_builds.router])

    def client(key: str) -> httpx.AsyncClient:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        return httpx.AsyncClient(transport=transport, base_url="http://test", headers={"X-API-KEY": key})

    return Fort(house, weak, strong, client(STRICT), client(LAX), foreman, builds)


@pytest.fixture
async def fort(tmp_path: Path) -> AsyncIterator[Fort]:
    weak = World("weak", IsolationLevel.GVISOR)
    strong = World("strong", KVM)
    fort = await fort_on(tmp_path, weak, strong)
    yield fort
    await fort.builds.close()
    await fort.house.close()
    weak.clear()
    strong.clear()


def refused(answer: httpx.Response, code: str = "isolation_below_minimum", status: int = 403) -> None:
    told = answer.json()
    assert (answer.status_code, told["error_code"]) == (status, code), told
    assert told["message"].endswith(")")  # with what to do next


# ── what it makes


async def test_it_gets_the_strong_wall_without_asking(fort: Fort) -> None:
    made = await fort.made(fort.strict)
    assert made["isolation"] == "microvm-kvm"
    assert fort.weak.bodies == {}


WEAK_WAYS: dict[str, Callable[[], tuple[dict[str, Any], dict[str, str]]]] = {
    "body": lambda: ({"isolation": "gvisor"}, {}),
    "header": lambda: ({}, {HEADER: "gvisor"}),
    "emulated": lambda: ({"isolation": "microvm-emulated"}, {}),
    "template": lambda: ({"templateID": "quick"}, {}),
    "template-by-tag": lambda: ({"templateID": "quick:default"}, {}),
    "mcp": lambda: ({"mcp": {"time": {}}, "isolation": "gvisor"}, {}),
}


@pytest.mark.parametrize("way", WEAK_WAYS)
@pytest.mark.parametrize("path", ["/v2/sandboxes", "/sandboxes"])
async def test_it_cannot_ask_for_less(fort: Fort, way: str, path: str) -> None:
    body, headers = WEAK_WAYS[way]()
    refused(await fort.strict.post(path, json={"templateID": "base"} | body, headers=headers))
    assert fort.weak.bodies == {}


async def test_what_the_template_says_is_no_trap_for_it(fort: Fort) -> None:
    """It may ask for more than the template says."""
    made = await fort.made(fort.strict, templateID="quick", isolation="microvm")
    assert made["isolation"] == "microvm-kvm"


async def test_it_gets_nothing_rather_than_the_emulator(tmp_path: Path) -> None:
    emulated = World("strong", IsolationLevel.MICROVM_EMULATED)
    fort = await fort_on(tmp_path, World("weak", IsolationLevel.GVISOR), emulated)
    for body in ({}, {"isolation": "microvm"}, {"isolation": "auto"}):
        answer = await fort.strict.post("/v2/sandboxes", json={"templateID": "base"} | body)
        refused(answer, "isolation_unavailable", 501)
    assert (await fort.made(fort.lax, isolation="microvm"))["isolation"] == "microvm-emulated"
    await fort.house.close()
    emulated.clear()


async def test_an_idempotency_key_leads_to_nothing_weaker(fort: Fort) -> None:
    headers = {"Idempotency-Key": "same"}
    body = {"templateID": "base", "isolation": "gvisor"}
    assert (await fort.lax.post("/v2/sandboxes", json=body, headers=headers)).status_code == 201
    refused(await fort.strict.post("/v2/sandboxes", json={"templateID": "base"}, headers=headers))


# ── what others of its tenant made


async def test_it_cannot_get_into_what_is_weaker(fort: Fort) -> None:
    there = (await fort.made(fort.lax, isolation="gvisor"))["sandboxID"]
    for path, body in (
        (f"/v2/sandboxes/{there}/connect", {"timeout": 60}),
        (f"/sandboxes/{there}/connect", {"timeout": 60}),
        (f"/sandboxes/{there}/fork", {"count": 2}),
    ):
        refused(await fort.strict.post(path, json=body))
    detail = (await fort.strict.get(f"/sandboxes/{there}")).json()
    assert detail["isolation"] == "gvisor"
    assert not {"envdAccessToken", "trafficAccessToken"} & set(detail)
    assert (await fort.lax.get(f"/sandboxes/{there}")).json()["envdAccessToken"]
    assert len(fort.weak.bodies) == 1
    # To end it is not to get it.
    assert (await fort.strict.delete(f"/sandboxes/{there}")).status_code == 204


@pytest.mark.parametrize("path", ["connect", "resume"])
async def test_it_cannot_resume_what_is_weaker(fort: Fort, path: str) -> None:
    there = (await fort.made(fort.lax, isolation="gvisor"))["sandboxID"]
    assert (await fort.strict.post(f"/sandboxes/{there}/pause", json={})).status_code == 204
    for body in ({"timeout": 60}, {"timeout": 60, "memory": False}):
        refused(await fort.strict.post(f"/sandboxes/{there}/{path}", json=body))
    assert fort.weak.bodies == {}
    assert (await fort.house.sandboxes.get(TENANT, there)).state is State.PAUSED


async def test_weak_memory_is_not_restored_for_it_and_weak_files_are_booted_in_strength(fort: Fort) -> None:
    there = (await fort.made(fort.lax, isolation="gvisor"))["sandboxID"]
    for name, memory in (("memory", True), ("files", False)):
        body = {"name": name, "memory": memory}
        answer = await fort.strict.post(f"/sandboxes/{there}/snapshots", json=body)
        assert (answer.status_code, answer.json()["isolation"]) == (201, "gvisor")
    refused(await fort.strict.post("/v2/sandboxes", json={"templateID": "memory"}))
    refused(await fort.strict.post("/v2/sandboxes", json={"templateID": "memory", "isolation": "microvm"}))
    made = await fort.made(fort.strict, templateID="files")
    assert made["isolation"] == "microvm-kvm"


# ── what becomes of what it made


async def test_what_it_made_and_forked_never_becomes_weaker(tmp_path: Path) -> None:
    """The host changes under it: hardware virtualisation is gone, the driver goes on emulating."""
    weak, strong = World("weak", IsolationLevel.GVISOR), World("strong", KVM)
    fort = await fort_on(tmp_path, weak, strong)
    wakes = {"autoPause": True, "autoResume": {"enabled": True}}
    parent = (await fort.made(fort.strict, **wakes))["sandboxID"]
    forked = (await fort.lax.post(f"/sandboxes/{parent}/fork", json={"count": 1})).json()
    fork = forked[0]["sandbox"]["sandboxID"]
    other = (await fort.made(fort.strict))["sandboxID"]
    for name, memory in ((parent, True), (fork, True), (other, False)):
        answer = await fort.lax.post(f"/sandboxes/{name}/pause", json={"memory": memory})
        assert answer.status_code == 204
    await fort.house.close()

    strong.level = IsolationLevel.MICROVM_EMULATED
    fort = await fort_on(tmp_path, weak, strong)
    for client in (fort.strict, fort.lax):
        for name in (parent, fork):
            refused(await client.post(f"/sandboxes/{name}/connect", json={"timeout": 60}))
        answer = await client.post(f"/sandboxes/{other}/connect", json={"timeout": 60})
        refused(answer, "isolation_unavailable", 501)
    for name in (parent, fork):  # as traffic to it would
        with pytest.raises(WardianError) as found:
            async with fort.house.sandboxes.guest(name):
                pass
        assert found.value.code == "isolation_below_minimum"
    assert weak.bodies == strong.bodies == {}
    await fort.house.close()


# ── builds


async def test_its_builds_run_in_strength(fort: Fort) -> None:
    async def build(client: httpx.AsyncClient, isolation: str | None, **headers: str) -> httpx.Response:
        asked = (await client.post("/v3/templates", json={"name": "mine"})).json()
        address = f"/templates/{asked['templateID']}/builds/{asked['buildID']}"
        plan: dict[str, Any] = {"stages": [], "isolation": isolation}
        return await client.post(f"/wardian{address}", json={"plan": plan}, headers=headers)

    refused(await build(fort.strict, "gvisor"))
    refused(await build(fort.strict, None, **{HEADER: "gvisor"}))
    assert fort.foreman.told == []
    assert (await build(fort.strict, None)).status_code == 202
    assert (await build(fort.lax, "gvisor")).status_code == 202
    for job in list(fort.builds._jobs):
        await fort.builds.settled(job)
    assert [(plan.isolation, minimum) for plan, minimum in fort.foreman.told] == [
        (None, KVM),
        (Isolation.GVISOR, None),
    ]


# ── the doors


async def test_an_isolation_that_does_not_exist_is_refused_everywhere(fort: Fort) -> None:
    for method, path in (("POST", "/v2/sandboxes"), ("GET", "/v2/sandboxes"), ("GET", "/snapshots")):
        answer = await fort.lax.request(method, path, headers={HEADER: "docker"})
        refused(answer, "bad_isolation", 400)
    body = {"templateID": "base", "isolation": "gvisor"}
    answer = await fort.lax.post("/v2/sandboxes", json=body, headers={HEADER: "microvm"})
    refused(answer, "isolation_contradicted", 400)


async def test_what_is_there_must_be_what_is_asked_for(fort: Fort) -> None:
    """The header goes with every request of an SDK's: also with those about a sandbox that is there."""
    there = (await fort.made(fort.lax, isolation="gvisor"))["sandboxID"]
    address = f"/v2/sandboxes/{there}/connect"
    asked = await fort.lax.post(address, json={"timeout": 60}, headers={HEADER: "gvisor"})
    assert asked.status_code == 200
    answer = await fort.lax.post(address, json={"timeout": 60}, headers={HEADER: "microvm"})
    refused(answer, "isolation_differs", 409)


def test_no_route_reaches_the_house_past_the_minimum() -> None:
    """There is one place where routes are given the house, and it binds what they are given."""
    sources = Path(wardian.api.__file__).parent.rglob("*.py")
    reaching = [path.name for path in sources if "state.plane" in path.read_text()]
    assert sorted(reaching) == ["app.py", "context.py"]
