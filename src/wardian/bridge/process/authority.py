"""The bridge's certificate authority: vouches, inside sandboxes only, for the hosts it stands in for.

Its key never leaves the bridge. Certificates of hosts are made when they are first needed, and are never
stored.
"""

from __future__ import annotations

import datetime as dt
import os
import ssl
from collections import OrderedDict
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from wardian.model.egress import name_of
from wardian.store import private
from wardian.vault import x509 as certs

FILE = "authority.pem"
LIFETIME = dt.timedelta(days=3650)
LEAF_LIFETIME = dt.timedelta(days=7)
HOSTS_MAX = 1024


class Authority:
    """``directory`` is the bridge's own."""

    def __init__(self, directory: Path) -> None:
        path = directory / FILE
        found = certs.load(path)
        if found is None or found[0].not_valid_after_utc - LEAF_LIFETIME < certs.now():
            found = _new()
            private.publish(path, certs.key_pem(found[1]) + certs.pem(found[0]))
        self._certificate, self._key = found
        self._directory = directory
        self._leaf_key = ec.generate_private_key(ec.SECP256R1())
        self._contexts: OrderedDict[str, tuple[ssl.SSLContext, dt.datetime]] = OrderedDict()

    @property
    def pem(self) -> str:
        """What sandboxes must trust."""
        return certs.pem(self._certificate).decode()

    def context(self, host: str) -> ssl.SSLContext:
        """The server's side of TLS for ``host``; HTTP/1.1 is all that is offered."""
        known = self._contexts.get(host)
        if known is not None and certs.now() < known[1]:
            self._contexts.move_to_end(host)
            return known[0]
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
        context.set_alpn_protocols(["http/1.1"])
        context.sni_callback = lambda _, asked, __: (
            None if asked is None or name_of(asked) == host else ssl.ALERT_DESCRIPTION_UNRECOGNIZED_NAME
        )
        self._load(context, certs.key_pem(self._leaf_key) + self._issue(host))
        self._contexts[host] = (context, certs.now() + LEAF_LIFETIME / 2)
        if len(self._contexts) > HOSTS_MAX:
            self._contexts.popitem(last=False)
        return context

    def _load(self, context: ssl.SSLContext, text: bytes) -> None:
        """OpenSSL reads paths only."""
        descriptor, path = private.new_file(self._directory, "leaf")
        try:
            os.write(descriptor, text)
            context.load_cert_chain(path)
        finally:
            os.close(descriptor)
            path.unlink()

    def _issue(self, host: str) -> bytes:
        now = certs.now()
        leaf = (
            x509.CertificateBuilder()
            .subject_name(certs.name(host))
            .issuer_name(self._certificate.subject)
            .public_key(self._leaf_key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - certs.SKEW)
            .not_valid_after(now + LEAF_LIFETIME)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(certs.usage(digital_signature=True), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
            .add_extension(certs.issued_by(self._key.public_key()), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        return certs.pem(leaf) + certs.pem(self._certificate)


def _new() -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    key = ec.generate_private_key(ec.SECP256R1())
    name, now = certs.name("Wardian bridge"), certs.now()
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
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(certs.issued_by(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return certificate, key
