"""Certificates of our own, for tests that speak TLS."""

from __future__ import annotations

import ssl

from wardian.vault import certificates


def self_signed(name: str) -> tuple[ssl.SSLContext, str]:
    """A server's context with a certificate for ``name``, and that certificate as PEM."""
    pair = certificates.self_signed([name])
    return certificates.server_context(pair), pair.pem.decode()
