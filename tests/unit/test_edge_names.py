"""What a domain is, and which names are below it."""

from __future__ import annotations

from pathlib import Path

import pytest

from wardian.api.edge.authority import Authority
from wardian.cli import domain_findings as findings
from wardian.config import BadSetting, Settings
from wardian.model.domain import BadDomain, Domain, host_name

DATA = Path("/nowhere")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("sandbox.example.com", "sandbox.example.com"),
        ("Sandbox.Example.COM.", "sandbox.example.com"),
        ("x.test:8443", "x.test:8443"),
        ("x.test:443", "x.test"),
        ("localhost", "localhost"),
    ],
)
def test_a_domain_is_shown_as_clients_write_it(text: str, shown: str) -> None:
    assert str(Domain.parse(text)) == shown


@pytest.mark.parametrize(
    "text",
    [
        *("", ".", "a..b", "-a.test", "a_b.test", "*.x", "x test", "x.test/", "é.test", "x.test\n:443"),
        *("10.0.0.1", "[::1]", "x.test:0", "x.test:y", "x.test:99999"),
        *("a" * 64 + ".test", ".".join(["a" * 60] * 4)),
    ],
)
def test_what_is_no_domain_is_refused(text: str) -> None:
    with pytest.raises(BadDomain):
        Domain.parse(text)


@pytest.mark.parametrize("host", ["x.test", "api.x.test", "X.TEST", "8080-i0.x.test", "api.x.test."])
def test_names_one_label_below_are_ours(host: str) -> None:
    assert Domain("x.test").covers(host)


@pytest.mark.parametrize(
    "host",
    ["", "test", "ax.test", "a.b.x.test", ".x.test", "x.test.evil", "*.x.test", "a\0.x.test", "-.x.test"],
)
def test_other_names_are_not(host: str) -> None:
    assert not Domain("x.test").covers(host)


@pytest.mark.parametrize(
    ("authority", "name"),
    [
        ("a.test:80", "a.test"),
        ("a.test", "a.test"),
        ("[::1]:80", "[::1]"),
        ("a.test:b", "a.test:b"),
        ("", ""),
    ],
)
def test_a_host_without_its_port(authority: str, name: str) -> None:
    assert host_name(authority) == name


@pytest.mark.parametrize(
    "given",
    [
        {"tls_cert": Path("c"), "tls_key": Path("k")},
        {"proxy_port": 1},
        {"domain": "x.test", "tls": False, "proxy_port": 1},
        {"domain": "x.test", "tls_cert": Path("c")},
    ],
)
def test_settings_that_do_nothing_are_refused(given: dict[str, object]) -> None:
    with pytest.raises(BadSetting):
        Settings.load({}, data_dir=DATA, **given)


def test_the_environment_may_say_it_all() -> None:
    env = {
        "WARDIAN_DOMAIN": "x.test:443",
        "WARDIAN_TLS": "yes",
        "WARDIAN_TLS_PORT": "1",
        "WARDIAN_PROXY_PORT": "2",
    }
    settings = Settings.load(env, data_dir=DATA)
    assert (settings.domain, settings.tls, settings.tls_port, settings.proxy_port) == (
        "x.test:443",
        True,
        1,
        2,
    )
    with pytest.raises(BadSetting, match="TLS: neither"):
        Settings.load({"WARDIAN_TLS": "perhaps"}, data_dir=DATA)


def test_the_doctor_says_what_clients_need(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It changes nothing: an authority is not made by looking for one."""
    assert findings._resolves("localhost")
    monkeypatch.delenv("WARDIAN_DOMAIN", raising=False)
    assert list(findings.domain_findings(tmp_path)) == []
    monkeypatch.setenv("WARDIAN_DOMAIN", "wardian.test")
    monkeypatch.setattr(findings, "_resolves", lambda name: False)
    names, certificate = findings.domain_findings(tmp_path)
    assert (names.level, certificate.level) == ("warning", "ok")
    assert "api.wardian.test" in names.detail
    assert list(tmp_path.iterdir()) == []
    authority = Authority.open(tmp_path, "wardian.test")
    monkeypatch.setattr(findings, "_resolves", lambda name: True)
    names, certificate = findings.domain_findings(tmp_path)
    assert names.level == "ok"
    assert str(authority.certificate_path) in certificate.detail
