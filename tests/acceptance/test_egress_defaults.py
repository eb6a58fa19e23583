"""What may leave a sandbox that nobody said more of: as its template says, and never more than its key's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from e2b import Sandbox
from e2b.exceptions import SandboxException
from tests.acceptance.conftest import Server
from typer.testing import CliRunner

from wardian.cli.main import app

TEMPLATE = """
[base]
template = "base"
[network]
allow = ["pypi.org", "*.pythonhosted.org"]
"""


def wardian(*words: str) -> Any:
    done = CliRunner().invoke(app, [*words, "--json"])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_a_key_bounds_what_its_sandboxes_reach(server: Server) -> None:
    data = ["--data", str(server.data)]
    key = wardian("key", "create", "--egress", "granted", "--allow", "*.good.test", *data)["key"]
    listed = CliRunner().invoke(app, ["key", "ls", *data]).output
    assert "granted" in listed
    box = Sandbox.create(timeout=60, api_key=key)
    try:
        info = box.get_info()
        assert info.network is not None
        assert info.network["allow_out"] == ["*.good.test"]
        said = box.commands.run("getent ahostsv4 pypi.org || echo refused").stdout
        assert "refused" in said
        shown = wardian("egress", "--url", server.url, "--api-key", key, "show", box.sandbox_id, "--denied")
        refused = {(each["name"], each["reason"]) for each in shown["decisions"]}
        assert ("pypi.org", "internet_off") in refused
        with pytest.raises(SandboxException, match="may reach no more than egress 'granted'"):
            Sandbox.create(timeout=60, api_key=key, network={"allow_out": ["8.8.8.8"]})
        with pytest.raises(SandboxException, match="egress 'granted'"):
            box.update_network({"allow_out": ["8.8.8.8"]})
        box.update_network({})
        updated = box.get_info().network
        assert updated is not None
        assert updated["allow_out"] == ["*.good.test"]
        # A grant of the bridge's opens its host: not one that the key may not open.
        grant = {"name": "g", "secret": "nothing", "injector": {"kind": "bearer"}}
        for host, status, code in (
            ("evil.test", 403, "egress_beyond_key"),
            ("a.good.test", 404, "secret_not_found"),
        ):
            answer = httpx.post(
                f"{server.url}/wardian/grants", json=grant | {"host": host}, headers={"X-API-KEY": key}
            )
            assert (answer.status_code, answer.json()["error_code"]) == (status, code)
        wide = Sandbox.create(timeout=60)
        try:
            with pytest.raises(SandboxException, match="egress 'granted'"):
                Sandbox.connect(wide.sandbox_id, api_key=key).fork()
        finally:
            wide.kill()
    finally:
        box.kill()


def test_a_template_says_what_its_sandboxes_reach(server: Server, tmp_path: Path) -> None:
    (tmp_path / "wardian.toml").write_text(TEMPLATE)
    options = ["template", "--url", server.url, "--api-key", server.key]
    built = CliRunner().invoke(app, [*options, "build", str(tmp_path), "--name", "narrow"])
    assert built.exit_code == 0, built.output
    box = Sandbox.create("narrow", timeout=60)
    try:
        info = box.get_info()
        assert info.network is not None
        assert info.network["allow_out"] == ["pypi.org", "*.pythonhosted.org"]
        kept = box.create_snapshot()
    finally:
        box.kill()
    again = Sandbox.create(kept.snapshot_id, timeout=60)
    try:
        assert again.get_info().network == info.network
    finally:
        again.kill()


def test_a_check_that_cannot_show_everything_does_not_end_like_one_that_did(server: Server) -> None:
    """This server may not reach the far sides: that the walls hold is seen, that there are doors is not."""

    def check(*words: str) -> int:
        return CliRunner().invoke(app, ["egress", "--url", server.url, "check", *words]).exit_code

    assert check("--only", "ip-dotted") == 0
    assert check("--only", "ip-dotted", "--only", "http") == 7
    assert check("--only", "nothing") == 2
