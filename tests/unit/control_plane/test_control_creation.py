"""What a sandbox is created from: every field, its default, and what is refused before anything happens."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from tests.unit.control_plane.double import ID, Service, refused, sandbox

from wardian.model.sandbox import OnTimeout, SandboxSpec


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
        ({"memoryMB": 1024}, 501, "resources_fixed"),
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
    rules = {"a.test": [{"transform": {"headers": {"X-Key": "v"}}}]}
    answer = await client.post("/v2/sandboxes", json={"templateID": "base", "network": {"rules": rules}})
    assert "wardian grant add" in refused(answer, 501, "network_rules_unsupported")  # what to do instead
    answer = await client.get("/sandboxes/inobody")
    expected = "Sandbox \"inobody\" doesn't exist or you don't have access to it"
    assert refused(answer, 404, "sandbox_not_found") == expected
