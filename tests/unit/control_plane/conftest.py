"""The control plane over a service that remembers what it was asked."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import httpx
import pytest
from sqlalchemy import Connection
from tests.unit.bridges import unstarted_bridge
from tests.unit.control_plane.double import (
    BASE,
    KEY,
    MADE_AT,
    NARROW,
    NARROW_KEY,
    OTHER_KEY,
    Service,
    api_key,
)

from wardian.api.auth import Keyring
from wardian.api.e2b.app import build_control_plane
from wardian.api.e2b.context import ControlPlane
from wardian.bridge.service import Bridge
from wardian.builds.builder import Builder
from wardian.builds.service import Builds, House
from wardian.images.roots import Roots
from wardian.isolation.drivers import Drivers, Found
from wardian.isolation.port import Capabilities, IsolationLevel
from wardian.model.egress import Egress
from wardian.model.errors import Invalid
from wardian.model.template import Template
from wardian.sandboxes.templates import Templates, assign
from wardian.store import builds as stored_builds
from wardian.store import keys
from wardian.store import templates as stored_templates
from wardian.store.database import Database
from wardian.store.keys import ApiKey
from wardian.vault.keys import MasterKey
from wardian.vault.vault import Vault
from wardian.volumes.service import Volumes


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

    def tidy(self) -> None:
        """There is nothing."""


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
        narrow = replace(api_key("t1"), egress=NARROW)
        return {KEY: api_key("t1"), OTHER_KEY: api_key("t2"), NARROW_KEY: narrow}.get(key)

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
