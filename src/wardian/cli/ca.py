"""``wardian ca``: the certificate that clients of a domain without a public one must trust."""

from __future__ import annotations

import sys
from pathlib import Path

import certifi
from rich.text import Text

from wardian.api.edge.authority import Authority, known_domains
from wardian.cli.output import err
from wardian.model.domain import Domain
from wardian.model.errors import NotFound

HOW_TO = """\
Python, curl, Go:  export SSL_CERT_FILE=ca.pem      (with --bundle: other sites go on working as well)
Node:              export NODE_EXTRA_CA_CERTS=ca.pem
this machine:      cp ca.pem /usr/local/share/ca-certificates/wardian.crt && update-ca-certificates
browsers:          import it under certificate authorities, for websites
It can vouch for {domain} and the names below it, and for nothing else."""


def show(data_dir: Path, domain: str | None, *, bundle: bool) -> None:
    """Print it as PEM, with the public roots for ``bundle``; what to do with it goes to standard error."""
    authority = open_authority(data_dir, domain)
    sys.stdout.write(authority.certificate_path.read_text())
    if bundle:
        sys.stdout.write(Path(certifi.where()).read_text())
    words = f"from {authority.certificate_path}; save it as ca.pem, then:\n{HOW_TO}"
    err.print(Text(words.format(domain=authority.domain), style="dim"), soft_wrap=True)


def open_authority(data_dir: Path, domain: str | None) -> Authority:
    """The authority for ``domain``, or for the newest that was served. Raises :class:`NotFound`."""
    if domain is None:
        served = known_domains(data_dir)
        if not served:
            raise NotFound(
                f"no domain has been served from {data_dir}",
                code="no_authority",
                hint="name it with --domain, or start `wardian serve --domain` first",
            )
        domain = served[0]
    return Authority.open(data_dir, Domain.parse(domain).name)
