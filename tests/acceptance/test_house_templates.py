"""Templates of the house: the operator builds them, every tenant uses them, nobody else changes them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from e2b import Sandbox
from tests.acceptance.conftest import Server
from tests.acceptance.templates import build, key_of, wardian

MANIFEST = '[template]\nname = "shared"\n\n[[step]]\nrun = "echo {0} >/home/user/whose"\n'


def manifest(tmp_path: Path, whose: str) -> Path:
    directory = tmp_path / whose
    directory.mkdir()
    (directory / "wardian.toml").write_text(MANIFEST.format(whose))
    return directory


def whose(key: str) -> str:
    """Which template ``shared`` is to the holder of a key."""
    with Sandbox.create("shared", timeout=60, api_key=key) as sandbox:
        return str(sandbox.files.read("/home/user/whose")).strip()


@pytest.fixture(scope="module")
def tenant(server: Server) -> str:
    """A tenant's key."""
    return key_of(server, "of-the-house")


@pytest.fixture(scope="module")
def shared(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    told = build(server, manifest(tmp_path_factory.mktemp("shared"), "house"), "--house")
    assert told["names"] == ["shared"]
    yield
    done = wardian(server, "rm", "shared")
    assert done.returncode == 0, done.stderr


@pytest.mark.usefixtures("shared")
def test_every_tenant_may_use_it_and_only_the_operator_change_it(
    server: Server, tenant: str, tmp_path: Path
) -> None:
    def refused(*words: str, code: str, key: str = tenant) -> None:
        done = wardian(server, *words, "--json", key=key)
        assert code in done.stderr, done.stderr
        assert done.returncode

    assert whose(tenant) == whose(server.key) == "house"
    assert "shared" in wardian(server, "ls", key=tenant).stdout
    refused("rm", "shared", code="template_not_yours")
    refused("tag", "shared:default", "mine", code="template_not_yours")
    other = manifest(tmp_path, "other")
    refused("build", str(other), "--house", code="not_the_operator")
    for words in (("rm", "base"), ("build", str(other), "--house", "--name", "base")):
        refused(*words, code="template_comes_with_server", key=server.key)
    assert whose(tenant) == "house"


@pytest.mark.usefixtures("shared")
def test_a_tenants_own_goes_first_and_hides_it_from_nobody_else(
    server: Server, tenant: str, tmp_path: Path
) -> None:
    assert build(server, manifest(tmp_path, "tenant"), key=tenant)["names"] == ["of-the-house/shared"]
    assert (whose(tenant), whose(server.key)) == ("tenant", "house")
    assert wardian(server, "rm", "shared", key=tenant).returncode == 0
    assert whose(tenant) == "house"


@pytest.mark.usefixtures("shared")
def test_what_is_built_again_is_what_everybody_gets(server: Server, tenant: str, tmp_path: Path) -> None:
    build(server, manifest(tmp_path, "again"), "--house")
    assert whose(tenant) == "again"
