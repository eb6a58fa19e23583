"""``wardian key``: another tenant gets a key, sees nothing of the first, and loses it again."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import httpx
from e2b import Sandbox
from tests.acceptance.conftest import Server
from typer.testing import CliRunner

from wardian.cli.main import app

BELIEVED_S = 30  # a revoked key may open the door for seconds


def wardian(server: Server, *words: str) -> Any:
    """What a key command answers, as JSON."""
    result = CliRunner().invoke(app, ["key", *words, "--data", str(server.data), "--json"])
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def listing(server: Server, key: str) -> httpx.Response:
    return httpx.get(f"{server.url}/v2/sandboxes", headers={"X-API-KEY": key})


def test_a_key_of_another_tenant(server: Server, own_sandbox: Callable[..., Sandbox]) -> None:
    """A new key works at once on the running server, shows nothing of others, and can be taken back."""
    mine = own_sandbox()
    made = wardian(server, "create", "--tenant", "neighbour-by-key", "--name", "for the test")
    assert listing(server, made["key"]).json() == []
    assert mine.sandbox_id in {item["sandboxID"] for item in listing(server, server.key).json()}
    answer = httpx.delete(f"{server.url}/sandboxes/{mine.sandbox_id}", headers={"X-API-KEY": made["key"]})
    assert answer.status_code == 404

    known = wardian(server, "ls", "--tenant", "neighbour-by-key")
    assert [(key["id"], key["name"], key["revoked_at"]) for key in known] == [
        (made["id"], "for the test", None)
    ]
    assert made["key"] not in json.dumps(known)

    wardian(server, "revoke", made["id"], "--tenant", "neighbour-by-key")
    deadline = time.monotonic() + BELIEVED_S
    while listing(server, made["key"]).status_code != 401:
        assert time.monotonic() < deadline, "a revoked key is still believed"


def test_mistakes_are_told(server: Server, tmp_path: Any) -> None:
    """A bad tenant, an unknown key and a wrong directory each say what to do."""
    for words, code, said in (
        (("create", "--tenant", "Not A Name", "--data", str(server.data)), 2, "tenant"),
        (("revoke", "nothing", "--data", str(server.data)), 3, "wardian key ls"),
        (("ls", "--data", str(tmp_path)), 3, "wardian serve"),
    ):
        result = CliRunner().invoke(app, ["key", *words])
        assert result.exit_code == code
        assert said in result.stderr
