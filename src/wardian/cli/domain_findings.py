"""What ``wardian doctor`` says about the domain: whether its names resolve, and whom clients must trust."""

from __future__ import annotations

import datetime as dt
import socket
from collections.abc import Iterator
from pathlib import Path

from wardian.api.edge.authority import LEAF_LIFETIME, Authority, known_domains
from wardian.api.edge.certificates import Certificates, Files
from wardian.cli.finding import Finding
from wardian.config import Settings
from wardian.model.domain import Domain
from wardian.model.errors import WardianError

_PROBES = ("api", "8080-i0123456789abcdefghij")
"""The control plane, and a name like that of a sandbox's port."""


def domain_findings(data_dir: Path) -> Iterator[Finding]:
    """Nothing, when no domain is set (``WARDIAN_DOMAIN``) and none was ever served from ``data_dir``."""
    try:
        settings = Settings.load(data_dir=data_dir)
    except WardianError as error:
        yield Finding("settings", "missing", error.message, error.hint or "")
        return
    served = known_domains(settings.data_dir)
    if settings.domain is None and not served:
        return
    domain = Domain.parse(settings.domain or served[0])
    yield _names(domain)
    if settings.tls:
        yield _certificate(settings, domain)


def _names(domain: Domain) -> Finding:
    unknown = [f"{probe}.{domain.name}" for probe in _PROBES if not _resolves(f"{probe}.{domain.name}")]
    if not unknown:
        return Finding("domain", "ok", f"{domain.name} and the names below it resolve here")
    remedy = f"a DNS record *.{domain.name} for this host; without one, clients use --proxy-port"
    return Finding("domain", "warning", f"does not resolve here: {', '.join(unknown)}", remedy)


def _resolves(name: str) -> bool:
    try:
        return bool(socket.getaddrinfo(name, None, type=socket.SOCK_STREAM))
    except OSError:
        return False


def _certificate(settings: Settings, domain: Domain) -> Finding:
    try:
        if settings.tls_cert and settings.tls_key:
            Certificates(Files(settings.tls_cert, settings.tls_key), domain)
            return Finding("certificate", "ok", f"{settings.tls_cert} is good for *.{domain.name}")
        if domain.name not in known_domains(settings.data_dir):
            return Finding("certificate", "ok", "the first `wardian serve` makes an authority of our own")
        authority = Authority.open(settings.data_dir, domain.name)
    except WardianError as error:
        return Finding("certificate", "missing", error.message, error.hint or "")
    end = authority.pair.certificate.not_valid_after_utc
    said = f"our own authority, until {end:%Y-%m-%d}: {authority.certificate_path}"
    if end - dt.datetime.now(dt.UTC) < 3 * LEAF_LIFETIME:
        remedy = (
            f"a start after {end - LEAF_LIFETIME:%Y-%m-%d} makes a new one, which clients must trust anew"
        )
        return Finding("certificate", "warning", said, remedy)
    return Finding("certificate", "ok", said, "clients must trust it: `wardian ca`")
