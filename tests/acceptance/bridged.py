"""A server whose bridge leads to our own upstreams, with a few secrets and grants."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from e2b import Sandbox
from tests.acceptance.bridge_upstreams import NETWORK, Upstreams
from tests.acceptance.conftest import Server, serve, stop

SECRET = "sk-live-correct-horse-battery-77"
CURL = "curl -sS --max-time 20"
TOKEN = '-H "Authorization: Bearer $WARDIAN_TOKEN"'
OAUTH = {"token_url": "https://idp.test/token", "client_id": "me", "client_secret": "cs-4411-secret"}
AWS = {"access_key_id": "AKIDEXAMPLE", "secret_access_key": "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLE"}
GRANTS: list[dict[str, Any]] = [
    {"name": "api", "secret": "api-key", "host": "api.test", "injector": {"kind": "bearer"}},
    {
        "name": "open",
        "secret": "api-key",
        "host": "other.test",
        "injector": {"kind": "basic", "user": "x-access-token"},
        "admission": "link",
        "paths": ["/echo*", "/git/*"],
        "methods": ["GET", "POST"],
    },
    {
        "name": "openai",
        "secret": "api-key",
        "host": "llm.test",
        "injector": {"kind": "bearer"},
        "preset": "openai",
        "inDoubt": "safe",
        "intercept": False,
    },
    {
        "name": "anthropic",
        "secret": "api-key",
        "host": "llm.test",
        "injector": {"kind": "header", "header": "x-api-key"},
        "preset": "anthropic",
        "inDoubt": "safe",
        "intercept": False,
    },
    {
        "name": "query",
        "secret": "api-key",
        "host": "api.test",
        "injector": {"kind": "query", "query": "key"},
        "intercept": False,
    },
    {"name": "idp", "secret": "oauth", "host": "idp.test", "injector": {"kind": "oauth2"}},
    {
        "name": "wild",
        "secret": "api-key",
        "host": "*.wild.test",
        "injector": {"kind": "bearer"},
        "admission": "link",
    },
    {"name": "aws", "secret": "aws", "host": "bucket.test", "injector": {"kind": "sigv4"}},
]


@contextmanager
def bridged(far: Upstreams, data: Path, **environment: str) -> Iterator[Server]:
    """The server, running."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WARDIAN_ALLOWED_NETWORKS", NETWORK)
        patch.setenv("WARDIAN_BRIDGE_CA", str(far.certificate))
        for name, value in environment.items():
            patch.setenv(name, value)
        started = serve(data)
    try:
        secrets = {"api-key": SECRET, "oauth": json.dumps(OAUTH), "aws": json.dumps(AWS)}
        for name, value in secrets.items():
            call(started, "POST", "/secrets", {"name": name, "value": value})
        for grant in GRANTS:
            call(started, "POST", "/wardian/grants", grant)
        yield started
    finally:
        stop(started)


def new_box(server: Server, far: Upstreams, **options: Any) -> Sandbox:
    """A sandbox that finds our upstreams by their names."""
    network: Any = {"dns_servers": [far.names]}
    return Sandbox.create(**{"timeout": 300, "network": network, **access(server), **options})


def access(server: Server) -> dict[str, Any]:
    return {"api_url": server.url, "sandbox_url": server.url, "api_key": server.key}


def call(server: Server, method: str, path: str, body: Any = None) -> Any:
    headers = {"X-API-KEY": server.key}
    with httpx.Client(trust_env=False, timeout=60) as client:
        answer = client.request(method, server.url + path, json=body, headers=headers)
    assert not answer.is_error, answer.text
    return answer.json() if answer.content else None


def events(server: Server, sandbox: Sandbox, kind: str = "bridge.request") -> list[dict[str, Any]]:
    log = (server.data / "events" / f"{sandbox.sandbox_id}.jsonl").read_text()
    return [each for each in map(json.loads, log.splitlines()) if each["type"] == kind]


def run(sandbox: Sandbox, command: str, **options: Any) -> str:
    """What a command says, on both channels; its exit code does not matter."""
    result: Any = sandbox.commands.run(f"{{ {command}; }} 2>&1 || true", timeout=90, **options)
    return str(result.stdout)


def code(said: str) -> str:
    """The code of an error of the bridge's."""
    return str(json.loads(said.splitlines()[-1])["error"]["code"])


def bridges(server: Server) -> list[int]:
    """The process ids of a server's bridges."""
    found = subprocess.run(
        ["pgrep", "-P", str(server.process.pid), "-f", "wardian.bridge.process"],
        capture_output=True,
        text=True,
    )
    return [int(pid) for pid in found.stdout.split()]
