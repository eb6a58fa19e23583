"""A sandbox's network settings: taken, told without what is secret, replaced as a whole."""

from __future__ import annotations

from typing import Any

import httpx
from tests.unit.control_plane.double import ID, NARROW, NARROW_KEY, Service, refused, sandbox

from wardian.model.egress import Egress, EgressMode, EgressProxy
from wardian.model.sandbox import SandboxSpec
from wardian.sandboxes.egress import NO_BOUND

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
    assert service.asked == (EGRESS, None, NO_BOUND)
    empty: tuple[dict[str, Any] | None, ...] = ({}, {"allowOut": [], "denyOut": []}, None)
    for nothing in empty:
        assert (await client.put(path, json=nothing)).status_code == 204
        assert service.asked == (Egress(), None, NO_BOUND)
    assert (await client.put(path, json={"allow_internet_access": False})).status_code == 204
    assert list(service.asked[1:]) == [EgressMode.NONE, NO_BOUND]
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


async def test_a_keys_bound_is_the_default_and_cannot_be_exceeded(
    client: httpx.AsyncClient, service: Service
) -> None:
    client.headers["X-API-KEY"] = NARROW_KEY

    async def create(**options: Any) -> httpx.Response:
        return await client.post("/v2/sandboxes", json={"templateID": "base"} | options)

    granted = SandboxSpec(allow_internet=False, egress=Egress(allow=("*.good.test",), grants=True))
    for unsaid in ({}, {"allow_internet_access": True}, {"network": {"egress": "granted"}}):
        assert (await create(**unsaid)).status_code == 201
        assert service.asked == ("t1", granted)
    fewer = {"allowOut": ["a.good.test"], "denyOut": ["0.0.0.0/0"]}
    assert (await create(network=fewer)).status_code == 201
    assert service.asked[1].egress.allow == ("a.good.test",)
    assert (await create(allow_internet_access=False)).status_code == 201
    assert service.asked[1].egress == Egress()  # nothing, so what the bridge has grants for neither
    for more in (
        {"egress": "internet"},
        {"allowOut": ["evil.test"], "denyOut": ["0.0.0.0/0"]},
        {"allowOut": ["8.8.8.8"]},
        {"egressRules": ["allow *"]},
        {"dnsServers": ["8.8.8.8"]},
        {"egressProxy": {"address": "a.good.test:1080"}},
    ):
        message = refused(await create(network=more), 403, "egress_beyond_key")
        assert "egress 'granted' (*.good.test)" in message
    refused(await create(allow_internet_access=False, network={"egress": "internet"}), 400, "bad_egress")
    assert (await client.put(f"/sandboxes/{ID}/network", json={"egress": "internet"})).status_code == 204
    assert service.asked == (Egress(), EgressMode.INTERNET, NARROW)
