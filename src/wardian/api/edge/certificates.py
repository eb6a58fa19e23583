"""What the HTTPS listener shows: one TLS context, whose certificate is replaced while it is in use.

A certificate comes from the operator's files, read again when they change, or from our own authority, renewed
when a third of its life is left. Connections keep the one they began with. A new one that is no good is
refused, and the old one stays.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import logging
import os
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from wardian.api.edge.authority import LEAF_LIFETIME, Authority
from wardian.model.domain import Domain
from wardian.model.errors import Invalid

log = logging.getLogger(__name__)

PROTOCOLS = ("h2", "http/1.1")
LOOK_EVERY_S = 60.0
_CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"
"""For TLS 1.2; those of 1.3 are all good."""


class BadCertificate(Invalid):
    code = "bad_certificate"


class Source(Protocol):
    """Where certificates come from."""

    def newer(self) -> bytes | None:
        """Key and chain as PEM when there is something new since the last call. Raises OSError."""


class Files:
    """An operator's two PEM files."""

    def __init__(self, certificate: Path, key: Path) -> None:
        self._paths = (key, certificate)
        self._seen: list[tuple[int, int, int]] = []

    def newer(self) -> bytes | None:
        stats = [path.stat() for path in self._paths]
        seen = [(stat.st_ino, stat.st_mtime_ns, stat.st_size) for stat in stats]
        if seen == self._seen:
            return None
        text = b"\n".join(path.read_bytes() for path in self._paths)
        self._seen = seen
        return text


class Issued:
    """Certificates of our own authority."""

    def __init__(self, authority: Authority) -> None:
        self.authority = authority
        self._renew_at = dt.datetime.min.replace(tzinfo=dt.UTC)

    def newer(self) -> bytes | None:
        now = dt.datetime.now(dt.UTC)
        if now < self._renew_at:
            return None
        self._renew_at = now + LEAF_LIFETIME * 2 / 3
        return self.authority.issue()


class Certificates:
    """The server's side of TLS for one domain."""

    def __init__(self, source: Source, domain: Domain) -> None:
        """Raises :class:`BadCertificate`."""
        self._source, self._domain = source, domain
        self._look_now = asyncio.Event()
        self.context = new_context()
        self.refresh()

    def refresh(self) -> bool:
        """Take a new certificate into use, if there is one. Raises :class:`BadCertificate`."""
        try:
            text = self._source.newer()
        except OSError as error:
            raise BadCertificate(f"the certificate cannot be read: {error}") from error
        if text is None:
            return False
        check(text, self._domain)
        with _as_file(text) as path:
            load(new_context(), path)  # first into one that nobody uses: a failure half-way must not matter
            load(self.context, path)
        return True

    def look_now(self) -> None:
        """Look for a new certificate at once (SIGHUP)."""
        self._look_now.set()

    async def keep_fresh(self) -> None:
        """Look for a new certificate, for ever."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_EVERY_S):
                    await self._look_now.wait()
            self._look_now.clear()
            try:
                if self.refresh():
                    log.info("a new certificate for %s is in use", self._domain.name)
            except BadCertificate as error:
                log.error("the new certificate is not used, the old one stays: %s", error)


def new_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    context.set_ciphers(_CIPHERS)
    context.set_alpn_protocols(list(PROTOCOLS))
    return context


def check(text: bytes, domain: Domain) -> None:
    """Whether key and chain are readable, valid now, and for ``domain``. Raises :class:`BadCertificate`."""
    try:
        key = load_pem_private_key(text, password=None)
        leaf = x509.load_pem_x509_certificates(text)[0]
    except TypeError as error:
        raise BadCertificate(
            "the certificate's key is encrypted",
            hint="give one that needs no password, in a file of mode 0600",
        ) from error
    except ValueError as error:
        why = str(error).partition(".")[0]  # the rest is for those who program
        raise BadCertificate(f"no PEM certificate and key in the files: {why}") from error
    if key.public_key() != leaf.public_key():
        raise BadCertificate("the certificate and the key do not belong together")
    if leaf.not_valid_after_utc < dt.datetime.now(dt.UTC):
        raise BadCertificate(f"the certificate was over at {leaf.not_valid_after_utc:%Y-%m-%d %H:%M} UTC")
    missing = {domain.name, f"*.{domain.name}"} - _names(leaf)
    if missing:
        raise BadCertificate(
            f"the certificate is not for {' and '.join(sorted(missing))}",
            hint=f"sandbox ports are names below {domain.name}, so a wildcard certificate is needed; "
            "without --tls-cert the server makes its own",
        )


def load(context: ssl.SSLContext, path: str) -> None:
    try:
        context.load_cert_chain(path)
    except (ssl.SSLError, OSError) as error:
        raise BadCertificate(f"the certificate cannot be used: {error}") from error


def _names(certificate: x509.Certificate) -> set[str]:
    try:
        listed = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return set()
    return {name.lower() for name in listed.get_values_for_type(x509.DNSName)}


@contextlib.contextmanager
def _as_file(text: bytes) -> Iterator[str]:
    """OpenSSL reads paths only; this one is in memory, so what was checked is what is loaded."""
    descriptor = os.memfd_create("certificate", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, text)
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)
