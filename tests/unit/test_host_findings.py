"""What the doctor says of a host on which something is missing, and of where it gets things."""

from __future__ import annotations

from pathlib import Path

import pytest

from wardian.cli import host_findings, requirements
from wardian.cli.host_findings import program_findings, source_findings
from wardian.cli.requirements import PACKAGES, Need
from wardian.images import debian
from wardian.images.indexes import Indexes


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host without any of it."""
    monkeypatch.setattr(requirements.Package, "found", lambda package: None)


def test_whatever_set_up_installs_is_found_here() -> None:
    """These tests run where it has been: else a sign is not what the package brings."""
    assert [name for name, package in PACKAGES.items() if package.found() is None] == []
    assert {finding.level for finding in program_findings()} == {"ok"}


@pytest.mark.usefixtures("bare")
def test_what_is_missing_is_explained_with_the_way_to_get_it() -> None:
    findings = list(program_findings())
    for name, package in PACKAGES.items():
        (finding,) = (each for each in findings if name in each.remedy.partition("apt install")[2].split())
        assert package.why in finding.detail
        assert finding.level == ("missing" if package.need is Need.SANDBOXES else "warning")
    (runsc,) = (finding for finding in findings if finding.name == "runsc")
    assert runsc.remedy == "make setup, or apt install -t bookworm-backports runsc"


def test_sources_are_told_without_their_passwords(monkeypatch: pytest.MonkeyPatch) -> None:
    secret = "https://me:hunter2@index.test"
    mirror = debian.Source(f"{secret}/debian", "bookworm", ("main",))
    env = {"PIP_INDEX_URL": f"{secret}/simple", "NPM_CONFIG_REGISTRY": f"{secret}/npm", "https_proxy": secret}
    monkeypatch.setattr(debian, "host_sources", lambda: (mirror,))
    monkeypatch.setattr(host_findings, "host_indexes", lambda: Indexes(env=env))
    found = {finding.name: finding.detail for finding in source_findings()}
    assert "https://index.test/debian" in found["debian"]
    assert "https://index.test/simple" in found["package indexes"]
    assert "https://index.test/npm, through https://index.test" in found["package indexes"]
    assert "hunter2" not in str(found)


def test_a_host_without_a_debian_mirror_is_told_what_to_add(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(debian, "host_sources", lambda: ())
    found = next(source_findings())
    assert found.level == "warning"
    assert "/etc/apt/sources.list.d/debian.sources" in found.remedy


def test_mirrors_of_registries_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    place = tmp_path / "registries.conf"
    monkeypatch.setattr(host_findings, "REGISTRIES", (place,))
    *_, nothing = source_findings()
    assert "directly" in nothing.detail
    place.touch()
    *_, told = source_findings()
    assert str(place) in told.detail
