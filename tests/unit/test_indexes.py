"""What builds are lent of the host's settings: as they are to be used inside, with what is secret named."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from wardian.images.indexes import LOOPBACK, PLACE, Indexes, host_indexes
from wardian.model.egress import GrantedHost


def lent(tmp_path: Path, environment: Mapping[str, str], npmrc: str = "") -> Indexes:
    (tmp_path / ".npmrc").write_text(npmrc)
    return host_indexes(environment, home=tmp_path)


def test_an_index_on_the_loopback_has_another_name_inside(tmp_path: Path) -> None:
    found = lent(
        tmp_path,
        {
            "PIP_INDEX_URL": "http://me:p%40ssword@127.0.0.1:3141/simple",
            "PIP_TRUSTED_HOST": "127.0.0.1 localhost:3141 pypi.example",
            "HTTPS_PROXY": "http://localhost:3128",
            "NO_PROXY": "inner.example",
        },
    )
    assert found.env["PIP_INDEX_URL"] == f"http://me:p%40ssword@{LOOPBACK}:3141/simple"
    assert found.env["UV_DEFAULT_INDEX"] == found.env["PIP_INDEX_URL"]
    assert found.env["PIP_TRUSTED_HOST"] == f"{LOOPBACK} {LOOPBACK}:3141 pypi.example"
    assert found.env["https_proxy"] == found.env["HTTPS_PROXY"] == f"http://{LOOPBACK}:3128"
    assert found.env["no_proxy"] == f"inner.example,{LOOPBACK}"
    assert GrantedHost(LOOPBACK, 3141, target="127.0.0.1") in found.hosts
    assert GrantedHost("inner.example", 443) not in found.hosts
    assert found.secrets == {"the password for 127.0.0.1:3141": "p@ssword"}


def test_npm_is_lent_its_registries_and_their_tokens(tmp_path: Path) -> None:
    npmrc = (
        "registry=http://localhost:4873/\n"
        "//localhost:4873/:_authToken=${TOKEN}\n"
        "@team:registry = https://npm.example/x/\n"
        "//npm.example/x/:_password=c2VjcmV0\n"
        "//npm.example/x/:username=me\n"
        "fund=false\n"
    )
    found = lent(tmp_path, {"TOKEN": "npm-token"}, npmrc)
    assert found.env["NPM_CONFIG_REGISTRY"] == f"http://{LOOPBACK}:4873/"
    assert found.env["NPM_CONFIG_GLOBALCONFIG"] == f"{PLACE}/npmrc"
    assert found.files["npmrc"].decode().splitlines() == [
        f"//{LOOPBACK}:4873/:_authToken=npm-token",
        "@team:registry=https://npm.example/x/",
        "//npm.example/x/:_password=c2VjcmV0",
        "//npm.example/x/:username=me",
    ]
    assert GrantedHost("npm.example", 443) in found.hosts
    assert found.secrets == {
        "npm's _authToken for localhost:4873": "npm-token",
        "npm's _password for npm.example/x": "c2VjcmV0",
    }


def test_nothing_secret_is_shown(tmp_path: Path) -> None:
    found = lent(tmp_path, {"PIP_INDEX_URL": "https://just-a-token@pypi.example/simple"})
    assert found.secrets == {"the password for pypi.example:443": "just-a-token"}
    assert "just-a-token" not in repr(found)


def test_a_host_without_settings_lends_the_public_indexes(tmp_path: Path) -> None:
    found = lent(tmp_path, {})
    assert {"pypi.org", "registry.npmjs.org"} <= {host.host for host in found.hosts}
    assert not {"PIP_INDEX_URL", "NPM_CONFIG_REGISTRY", "https_proxy"} & found.env.keys()
    assert found.secrets == {}
