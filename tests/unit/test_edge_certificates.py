"""Our own authority vouches for one domain only; an operator's certificate is checked before it is used."""

from __future__ import annotations

import asyncio
import datetime as dt
import os
import ssl
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from wardian.api.edge import authority as authorities
from wardian.api.edge.authority import Authority, known_domains
from wardian.api.edge.certificates import BadCertificate, Certificates, Files, Issued, load, new_context
from wardian.model.domain import Domain
from wardian.model.errors import Unavailable
from wardian.vault import certificates

NAME = "wardian.test"
DOMAIN = Domain(NAME)


def handshake(server: ssl.SSLContext, ca: Path, name: str) -> ssl.SSLObject:
    """A handshake in memory. Raises ``ssl.SSLError`` when the client does not believe the server."""
    client = ssl.create_default_context(cafile=ca)
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client.wrap_bio(to_client, to_server, server_hostname=name),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    left = list(ends)
    while left:
        for end in list(left):
            try:
                end.do_handshake()
                left.remove(end)
            except ssl.SSLWantReadError:
                pass
    return ends[0]


def serial(server: ssl.SSLContext, ca: Path) -> int:
    shown = handshake(server, ca, NAME).getpeercert(binary_form=True)
    assert shown is not None
    return x509.load_der_x509_certificate(shown).serial_number


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.open(tmp_path, NAME)


def loaded(pem: bytes, tmp_path: Path) -> ssl.SSLContext:
    path = tmp_path / "some.pem"
    path.write_bytes(pem)
    context = new_context()
    load(context, str(path))
    return context


# -- our own authority


def test_the_key_is_for_its_owner_only(authority: Authority) -> None:
    home = authority.certificate_path.parent
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in home.iterdir()}
    assert modes == {"authority.pem": 0o600, "ca.pem": 0o644}
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    assert b"PRIVATE" not in authority.certificate_path.read_bytes()


@pytest.mark.parametrize("name", [NAME, f"api.{NAME}", f"8080-i0123456789abcdefghij.{NAME}"])
def test_clients_that_trust_it_believe_our_names(authority: Authority, tmp_path: Path, name: str) -> None:
    session = handshake(loaded(authority.issue(), tmp_path), authority.certificate_path, name)
    assert session.version() == "TLSv1.3"


@pytest.mark.parametrize("name", ["example.com", f"evil{NAME}", "test", "127.0.0.1"])
def test_it_can_vouch_for_nothing_else(authority: Authority, tmp_path: Path, name: str) -> None:
    """Even with its key stolen: the authority's own certificate forbids other names."""
    stolen = loaded(replace(authority, domain=name).issue(), tmp_path)
    with pytest.raises(ssl.SSLCertVerificationError, match=r"permitted subtree violation|mismatch"):
        handshake(stolen, authority.certificate_path, name)


def test_it_survives_a_restart(authority: Authority, tmp_path: Path) -> None:
    again = Authority.open(tmp_path, NAME)
    assert again.pair.certificate == authority.pair.certificate
    handshake(loaded(again.issue(), tmp_path), authority.certificate_path, NAME)
    assert known_domains(tmp_path) == [NAME]


def test_what_is_shown_is_made_again_from_what_is_kept(authority: Authority, tmp_path: Path) -> None:
    """A crash between the two files leaves the second to be made at the next start."""
    before = authority.certificate_path.read_bytes()
    authority.certificate_path.unlink()
    assert Authority.open(tmp_path, NAME).certificate_path.read_bytes() == before


def test_a_broken_file_is_not_replaced_in_silence(authority: Authority, tmp_path: Path) -> None:
    (authority.certificate_path.parent / "authority.pem").write_text("nonsense")
    with pytest.raises(Unavailable, match="cannot be read"):
        Authority.open(tmp_path, NAME)


def test_an_authority_that_is_nearly_over_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(certificates, "AUTHORITY_LIFETIME", dt.timedelta(days=60))
    old = Authority.open(tmp_path, NAME)
    monkeypatch.undo()
    assert Authority.open(tmp_path, NAME).pair.certificate != old.pair.certificate


def test_leaves_are_renewed_while_a_third_of_their_life_is_left(authority: Authority) -> None:
    source = Issued(authority)
    assert source.newer() is not None
    assert source.newer() is None
    leaf = x509.load_pem_x509_certificates(authority.issue())[0]
    assert leaf.not_valid_after_utc - dt.datetime.now(dt.UTC) <= authorities.LEAF_LIFETIME


# -- an operator's certificate


def pair(
    names: tuple[str, ...] = (NAME, f"*.{NAME}"), *, days: int = 30, password: bytes | None = None
) -> tuple[bytes, bytes]:
    """A self-signed certificate and its key, as PEM."""
    end = dt.timedelta(days=days)
    made = certificates.self_signed(names, start=end - dt.timedelta(days=365), end=end, name="operator")
    sealed: serialization.KeySerializationEncryption = (
        serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    )
    form = serialization.PrivateFormat.PKCS8
    return made.pem, made.key.private_bytes(serialization.Encoding.PEM, form, sealed)


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    return tmp_path / "cert.pem", tmp_path / "key.pem"


def put(files: tuple[Path, Path], contents: tuple[bytes, bytes]) -> None:
    for path, content in zip(files, contents, strict=True):
        draft = path.with_suffix(".new")
        draft.write_bytes(content)
        os.replace(draft, path)


def test_new_files_are_taken_into_use(files: tuple[Path, Path]) -> None:
    put(files, pair())
    certificates = Certificates(Files(*files), DOMAIN)
    first = serial(certificates.context, files[0])
    assert certificates.refresh() is False
    put(files, pair())
    assert certificates.refresh() is True
    assert serial(certificates.context, files[0]) != first


BAD: dict[str, Callable[[], tuple[bytes, bytes]]] = {
    "is not for": lambda: pair((NAME,)),
    "was over": lambda: pair(days=-1),
    "is encrypted": lambda: pair(password=b"secret"),
    "do not belong together": lambda: (pair()[0], pair()[1]),
    "no PEM": lambda: (b"nonsense", pair()[1]),
}


@pytest.mark.parametrize("why", BAD)
def test_bad_files_are_refused_and_the_old_ones_stay(files: tuple[Path, Path], why: str) -> None:
    """At a start the server says why; while it runs it goes on with what it has."""
    put(files, pair())
    certificates = Certificates(Files(*files), DOMAIN)
    first, trusted = serial(certificates.context, files[0]), files[0].read_bytes()
    put(files, BAD[why]())
    with pytest.raises(BadCertificate, match=why):
        certificates.refresh()
    with pytest.raises(BadCertificate, match=why):
        Certificates(Files(*files), DOMAIN)
    files[0].write_bytes(trusted)
    assert serial(certificates.context, files[0]) == first


def test_missing_files_are_refused(files: tuple[Path, Path]) -> None:
    with pytest.raises(BadCertificate, match="cannot be read"):
        Certificates(Files(*files), DOMAIN)


async def test_looking_again_survives_bad_files(
    files: tuple[Path, Path], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after SIGHUP: a bad certificate is reported, the next good one is used."""
    put(files, pair())
    certificates = Certificates(Files(*files), DOMAIN)
    looked: asyncio.Queue[bool] = asyncio.Queue()
    refresh = certificates.refresh

    def watched() -> bool:
        try:
            return refresh()
        finally:
            looked.put_nowait(True)

    monkeypatch.setattr(certificates, "refresh", watched)
    looking = asyncio.create_task(certificates.keep_fresh())
    put(files, pair((NAME,)))
    certificates.look_now()
    await looked.get()
    put(files, pair())
    certificates.look_now()
    await looked.get()
    looking.cancel()
    assert "the old one stays" in caplog.text
    trusted = x509.load_pem_x509_certificate(files[0].read_bytes())
    assert serial(certificates.context, files[0]) == trusted.serial_number
