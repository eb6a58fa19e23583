"""A certificate authority of our own, for servers that have no public certificate.

It can vouch for one domain and for nothing else, and says so itself (a critical name constraint), so whoever
trusts it risks no other name. Its key and certificate are one file, mode 0600, published at once or not at
all. What it signs is short-lived and never stored.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from pathlib import Path

from wardian.store import private
from wardian.vault import certificates
from wardian.vault.certificates import Pair

DIRECTORY = "tls"
"""Within a data directory: one directory for each domain that was ever served there."""

CERTIFICATE = "ca.pem"
_SECRET = "authority.pem"

LEAF_LIFETIME = dt.timedelta(days=90)


@dataclass(frozen=True, slots=True)
class Authority:
    """``certificate_path`` is what clients must be told to trust."""

    domain: str
    certificate_path: Path
    pair: Pair

    @classmethod
    def open(cls, data_dir: Path, domain: str) -> Authority:
        """The authority for ``domain`` of this data directory: made at first, and again when it is over.

        Raises :class:`Unavailable` when its file cannot be read, or can be read by others.
        """
        home = data_dir / DIRECTORY / domain
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        secret, shown = home / _SECRET, home / CERTIFICATE
        found = certificates.load(secret)
        if found is None or not found.lasts(LEAF_LIFETIME):
            found = certificates.new_authority(f"Wardian, for {domain} only", only=domain)
            private.publish(secret, found.both)
        if not shown.exists() or shown.read_bytes() != found.pem:
            private.publish(shown, found.pem, mode=0o644)
        return cls(domain, shown, found)

    def issue(self) -> bytes:
        """A key and a certificate, as PEM, for the domain and every name one label below it."""
        leaf = certificates.issue(self.pair, [self.domain, f"*.{self.domain}"], LEAF_LIFETIME)
        return leaf.both + self.pair.pem


def known_domains(data_dir: Path) -> list[str]:
    """The domains for which a data directory has an authority, the newest first."""
    found = (data_dir / DIRECTORY).glob(f"*/{CERTIFICATE}")
    return [path.parent.name for path in sorted(found, key=lambda path: -path.stat().st_mtime)]
