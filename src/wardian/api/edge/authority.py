"""A certificate authority of our own, for servers that have no public certificate.

It can vouch for one domain and for nothing else, and says so itself (a critical name constraint), so whoever
trusts it risks no other name. Its key and certificate are one file, mode 0600, published at once or not at
all. What it signs is short-lived and never stored.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from ipaddress import ip_network
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from wardian.model.errors import Unavailable
from wardian.store import private

DIRECTORY = "tls"
"""Within a data directory: one directory for each domain that was ever served there."""

CERTIFICATE = "ca.pem"
_SECRET = "authority.pem"

LIFETIME = dt.timedelta(days=3650)
LEAF_LIFETIME = dt.timedelta(days=90)
_SKEW = dt.timedelta(hours=1)
"""Clients' clocks may be behind ours."""


@dataclass(frozen=True, slots=True)
class Authority:
    """``certificate_path`` is what clients must be told to trust."""

    domain: str
    certificate_path: Path
    certificate: x509.Certificate
    _key: ec.EllipticCurvePrivateKey

    @classmethod
    def open(cls, data_dir: Path, domain: str) -> Authority:
        """The authority for ``domain`` of this data directory: made at first, and again when it is over.

        Raises :class:`Unavailable` when its file cannot be read, or can be read by others.
        """
        home = data_dir / DIRECTORY / domain
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        secret, shown = home / _SECRET, home / CERTIFICATE
        found = _load(secret)
        if found is None or found[0].not_valid_after_utc - LEAF_LIFETIME < _now():
            found = _new_authority(domain)
            private.publish(secret, _key_pem(found[1]) + _pem(found[0]))
        certificate, key = found
        if not shown.exists() or shown.read_bytes() != _pem(certificate):
            private.publish(shown, _pem(certificate), mode=0o644)
        return cls(domain, shown, certificate, key)

    def issue(self) -> bytes:
        """A key and a certificate, as PEM, for the domain and every name one label below it."""
        key = ec.generate_private_key(ec.SECP256R1())
        now = _now()
        leaf = (
            x509.CertificateBuilder()
            .subject_name(_name(self.domain))
            .issuer_name(self.certificate.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _SKEW)
            .not_valid_after(min(now + LEAF_LIFETIME, self.certificate.not_valid_after_utc))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(digital_signature=True), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(
                x509.SubjectAlternativeName([x509.DNSName(self.domain), x509.DNSName(f"*.{self.domain}")]),
                critical=False,
            )
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(_issued_by(self._key.public_key()), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        return _key_pem(key) + _pem(leaf) + _pem(self.certificate)


def known_domains(data_dir: Path) -> list[str]:
    """The domains for which a data directory has an authority, the newest first."""
    found = (data_dir / DIRECTORY).glob(f"*/{CERTIFICATE}")
    return [path.parent.name for path in sorted(found, key=lambda path: -path.stat().st_mtime)]


def _new_authority(domain: str) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    key = ec.generate_private_key(ec.SECP256R1())
    name, now = _name(f"Wardian, for {domain} only"), _now()
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _SKEW)
        .not_valid_after(now + LIFETIME)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(key_cert_sign=True, crl_sign=True), critical=True)
        .add_extension(
            x509.NameConstraints(
                permitted_subtrees=[x509.DNSName(domain)],
                # What is not named here is not constrained, so no address at all is said aloud.
                excluded_subtrees=[x509.IPAddress(ip_network(all_of)) for all_of in ("0.0.0.0/0", "::/0")],
            ),
            critical=True,
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(_issued_by(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return certificate, key


def _load(path: Path) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey] | None:
    text = private.read(path)
    if text is None:
        return None
    try:
        key = serialization.load_pem_private_key(text, password=None)
        certificate = x509.load_pem_x509_certificate(text)
    except ValueError as error:
        raise Unavailable(
            f"{path} cannot be read: {error}",
            code="authority_broken",
            hint="restore it, or delete it for a new authority, which every client must then trust anew",
        ) from error
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return certificate, key


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common[:64])])


def _usage(
    *, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False
) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _issued_by(key: ec.EllipticCurvePublicKey) -> x509.AuthorityKeyIdentifier:
    return x509.AuthorityKeyIdentifier.from_issuer_public_key(key)


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)
