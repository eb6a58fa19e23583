"""The host's apt configuration, in every form it comes in."""

from __future__ import annotations

from pathlib import Path

import pytest

from wardian.images.debian import Source, archive, host_sources, network_options

ONE_LINE = """\
# comment
deb http://mirror.example/debian bookworm main contrib  # trailing
deb [arch=amd64 signed-by=/usr/share/keyrings/k.gpg] http://mirror.example/debian/ bookworm-updates main
deb-src http://mirror.example/debian bookworm main
deb http://other.example/thing stable main
"""

DEB822 = """\
Types: deb deb-src
URIs: http://mirror.example/debian
# a comment in the middle
Suites: bookworm bookworm-updates
Components: main contrib
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://security.example/debian-security
Suites: bookworm-security
Components: main
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 abc
 -----END PGP PUBLIC KEY BLOCK-----

Types: deb
Enabled: no
URIs: http://off.example/debian
Suites: bookworm
Components: main
"""


@pytest.fixture
def apt(tmp_path: Path) -> Path:
    """An empty /etc/apt."""
    (tmp_path / "sources.list.d").mkdir()
    return tmp_path


def test_one_line_sources_are_read(apt: Path) -> None:
    """Options, comments, deb-src lines and trailing slashes are dealt with."""
    (apt / "sources.list").write_text(ONE_LINE)
    assert host_sources(apt) == (
        Source("http://mirror.example/debian", "bookworm", ("main", "contrib")),
        Source("http://mirror.example/debian", "bookworm-updates", ("main",), "/usr/share/keyrings/k.gpg"),
        Source("http://other.example/thing", "stable", ("main",)),
    )


def test_deb822_sources_are_read(apt: Path) -> None:
    """Several suites in one paragraph, keys in the file, and paragraphs that are switched off."""
    (apt / "sources.list.d/debian.sources").write_text(DEB822)
    found = host_sources(apt)
    assert [source.suite for source in found] == ["bookworm", "bookworm-updates", "bookworm-security"]
    assert found[0].signed_by == "/usr/share/keyrings/debian-archive-keyring.gpg"
    assert found[2].signed_by.splitlines()[0].startswith("-----BEGIN")
    assert "\n -----END" in found[2].stanza


def test_a_stanza_reads_back_as_itself(apt: Path) -> None:
    """What the set-up writes for backports is what it meant."""
    source = Source("http://mirror.example/debian", "bookworm-backports", ("main",), "/k.gpg")
    (apt / "sources.list.d/x.sources").write_text(source.stanza)
    assert host_sources(apt) == (source,)


def test_the_release_is_chosen_from_among_others(apt: Path) -> None:
    """Backports and foreign archives are no part of the release; its updates and security fixes are."""
    (apt / "sources.list.d/a.sources").write_text(DEB822)
    (apt / "sources.list.d/b.list").write_text(
        "deb http://mirror.example/debian bookworm-backports main\n"
        "deb http://other.example/thing stable main\n"
    )
    chosen = archive(host_sources(apt), "bookworm")
    assert [source.suite for source in chosen] == ["bookworm", "bookworm-updates", "bookworm-security"]
    assert all(source.components == ("main",) for source in chosen)


def test_a_host_of_another_release_asks_its_mirror_for_ours() -> None:
    """The archive is the same; only the suite differs."""
    host = (
        Source("http://m/debian", "trixie", ("main",)),
        Source("http://m/sec", "trixie-security", ("main",)),
    )
    chosen = archive(host, "bookworm", "trixie")
    assert [source.suite for source in chosen] == ["bookworm", "bookworm-security"]


def test_without_a_debian_source_there_is_none() -> None:
    """No mirror is ever made up."""
    assert archive((Source("http://other.example/thing", "stable", ("main",)),), "bookworm", "bookworm") == ()


def test_only_settings_for_reaching_the_mirror_are_taken_over() -> None:
    """Proxies, certificates and clocks; nothing about what apt installs, and nothing empty."""
    dump = """\
APT::Install-Recommends "1";
Acquire::http::Proxy "http://proxy.example:3128";
Acquire::http::Proxy::direct.example "DIRECT";
Acquire::https::CaInfo "/etc/ssl/own.pem";
Acquire::https::Proxy "";
Acquire::Check-Valid-Until "false";
Acquire::Languages:: "none";
"""
    assert network_options(dump) == (
        'Acquire::http::Proxy "http://proxy.example:3128";',
        'Acquire::http::Proxy::direct.example "DIRECT";',
        'Acquire::https::CaInfo "/etc/ssl/own.pem";',
        'Acquire::Check-Valid-Until "false";',
    )
