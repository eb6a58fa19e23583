"""Certificates of our own: what every authority of ours needs. A key and its certificate are one file, mode
0600, published at once or not at all.
"""

from __future__ import annotations

import datetime as dt
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from wardian.model.errors import Unavailable
from wardian.store import private

SKEW = dt.timedelta(hours=1)
"""Clients' clocks may be behind ours."""


def load(path: Path) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey] | None:
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


def name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common[:64])])


def usage(
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


def issued_by(key: ec.EllipticCurvePublicKey) -> x509.AuthorityKeyIdentifier:
    return x509.AuthorityKeyIdentifier.from_issuer_public_key(key)


def pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)
