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
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from wardian.store import private
from wardian.vault import x509 as certs

DIRECTORY = "tls"
"""Within a data directory: one directory for each domain that was ever served there."""

CERTIFICATE = "ca.pem"
_SECRET = "authority.pem"

LIFETIME = dt.timedelta(days=3650)
LEAF_LIFETIME = dt.timedelta(days=90)


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
        found = certs.load(secret)
        if found is None or found[0].not_valid_after_utc - LEAF_LIFETIME < certs.now():
            found = _new_authority(domain)
            private.publish(secret, certs.key_pem(found[1]) + certs.pem(found[0]))
        certificate, key = found
        if not shown.exists() or shown.read_bytes() != certs.pem(certificate):
            private.publish(shown, certs.pem(certificate), mode=0o644)
        return cls(domain, shown, certificate, key)

    def issue(self) -> bytes:
        """A key and a certificate, as PEM, for the domain and every name one label below it."""
        key = ec.generate_private_key(ec.SECP256R1())
        now = certs.now()
        leaf = (
            x509.CertificateBuilder()
            .subject_name(certs.name(self.domain))
            .issuer_name(self.certificate.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - certs.SKEW)
            .not_valid_after(min(now + LEAF_LIFETIME, self.certificate.not_valid_after_utc))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(certs.usage(digital_signature=True), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(
                x509.SubjectAlternativeName([x509.DNSName(self.domain), x509.DNSName(f"*.{self.domain}")]),
                critical=False,
            )
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(certs.issued_by(self._key.public_key()), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        return certs.key_pem(key) + certs.pem(leaf) + certs.pem(self.certificate)


def known_domains(data_dir: Path) -> list[str]:
    """The domains for which a data directory has an authority, the newest first."""
    found = (data_dir / DIRECTORY).glob(f"*/{CERTIFICATE}")
    return [path.parent.name for path in sorted(found, key=lambda path: -path.stat().st_mtime)]


def _new_authority(domain: str) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    key = ec.generate_private_key(ec.SECP256R1())
    name, now = certs.name(f"Wardian, for {domain} only"), certs.now()
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - certs.SKEW)
        .not_valid_after(now + LIFETIME)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(certs.usage(key_cert_sign=True, crl_sign=True), critical=True)
        .add_extension(
            x509.NameConstraints(
                permitted_subtrees=[x509.DNSName(domain)],
                # What is not named here is not constrained, so no address at all is said aloud.
                excluded_subtrees=[x509.IPAddress(ip_network(all_of)) for all_of in ("0.0.0.0/0", "::/0")],
            ),
            critical=True,
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(certs.issued_by(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return certificate, key
