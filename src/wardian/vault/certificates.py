"""Certificates of our own: the one place where they are made. Keys are of the curve P-256.

A :class:`Pair` that is kept is one file of key and certificate, mode 0600, published at once or not at all.
"""

from __future__ import annotations

import datetime as dt
import os
import ssl
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_network
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from wardian.model.errors import Unavailable
from wardian.store import private

AUTHORITY_LIFETIME = dt.timedelta(days=3650)
SKEW = dt.timedelta(hours=1)
"""Clients' clocks may be behind ours."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate and its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def pem(self) -> bytes:
        """What everybody may see."""
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    @property
    def both(self) -> bytes:
        """The key, and then the certificate."""
        return key_pem(self.key) + self.pem

    def lasts(self, time: dt.timedelta) -> bool:
        """Whether it will be good for that long from now."""
        return self.certificate.not_valid_after_utc - time >= now()


def new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def new_authority(name: str, *, only: str | None = None) -> Pair:
    """A new authority. ``only``: it vouches for that domain and what is below it, and says so itself."""
    key = new_key()
    builder = _by_itself(name, key, now() - SKEW, now() + AUTHORITY_LIFETIME)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_usage(key_cert_sign=True, crl_sign=True), critical=True)
    if only is not None:
        limits = x509.NameConstraints(
            permitted_subtrees=[x509.DNSName(only)],
            # What is not named here is not constrained, so no address at all is said aloud.
            excluded_subtrees=[x509.IPAddress(ip_network(all_of)) for all_of in ("0.0.0.0/0", "::/0")],
        )
        builder = builder.add_extension(limits, critical=True)
    return Pair(_signed(builder, key, key), key)


def issue(
    authority: Pair,
    names: Sequence[str],
    lifetime: dt.timedelta,
    key: ec.EllipticCurvePrivateKey | None = None,
) -> Pair:
    """A server's certificate for ``names``, the first of which is its subject. It ends with the authority's.

    ``key``: one that there is already.
    """
    key = key or new_key()
    builder = (
        x509.CertificateBuilder()
        .subject_name(_name(names[0]))
        .issuer_name(authority.certificate.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now() - SKEW)
        .not_valid_after(min(now() + lifetime, authority.certificate.not_valid_after_utc))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
    )
    return Pair(_signed(_named(builder, names), key, authority.key), key)


def self_signed(
    names: Sequence[str],
    *,
    start: dt.timedelta = -SKEW,
    end: dt.timedelta = dt.timedelta(days=1),
    name: str | None = None,
) -> Pair:
    """A certificate that vouches for itself and for ``names``; ``start`` and ``end`` are seen from now."""
    key = new_key()
    builder = _by_itself(name or names[0], key, now() + start, now() + end)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    return Pair(_signed(_named(builder, names), key, key), key)


def server_context(pair: Pair, chain: bytes = b"", directory: Path | None = None) -> ssl.SSLContext:
    """The server's side of TLS. OpenSSL reads paths only: for a moment a file is in ``directory``. A relative
    one stays so: the whole path may be out of our reach."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    descriptor, path = private.new_file(directory or Path(tempfile.gettempdir()), "leaf")
    try:
        os.write(descriptor, pair.both + chain)
        context.load_cert_chain(path)
    finally:
        os.close(descriptor)
        path.unlink()
    return context


def load(path: Path) -> Pair | None:
    """What was kept in a file; None when there is none. Raises :class:`Unavailable`."""
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
    return Pair(certificate, key)


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


# ── parts


def _by_itself(
    common: str, key: ec.EllipticCurvePrivateKey, start: dt.datetime, end: dt.datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(_name(common))
        .issuer_name(_name(common))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(end)
    )


def _named(builder: x509.CertificateBuilder, names: Sequence[str]) -> x509.CertificateBuilder:
    if not names:
        return builder
    alternatives = x509.SubjectAlternativeName([x509.DNSName(name) for name in names])
    return builder.add_extension(alternatives, critical=False)


def _signed(
    builder: x509.CertificateBuilder, own: ec.EllipticCurvePrivateKey, signer: ec.EllipticCurvePrivateKey
) -> x509.Certificate:
    """With what says whose key is in it, and whose signed it."""
    mine = x509.SubjectKeyIdentifier.from_public_key(own.public_key())
    theirs = x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key())
    builder = builder.add_extension(mine, critical=False).add_extension(theirs, critical=False)
    return builder.sign(signer, hashes.SHA256())


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
