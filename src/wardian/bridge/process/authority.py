"""The bridge's certificate authority: vouches, inside sandboxes only, for the hosts it stands in for.

Its key never leaves the bridge. Certificates of hosts are made when they are first needed, and are never
stored.
"""

from __future__ import annotations

import datetime as dt
import ssl
from collections import OrderedDict
from pathlib import Path

from wardian.model.egress import name_of
from wardian.store import private
from wardian.vault import certificates

FILE = "authority.pem"
LEAF_LIFETIME = dt.timedelta(days=7)
HOSTS_MAX = 1024


class Authority:
    """``directory`` is the bridge's own."""

    def __init__(self, directory: Path) -> None:
        path = directory / FILE
        found = certificates.load(path)
        if found is None or not found.lasts(LEAF_LIFETIME):
            found = certificates.new_authority("Wardian bridge")
            private.publish(path, found.both)
        self._own, self._directory = found, directory
        self._leaf_key = certificates.new_key()
        self._contexts: OrderedDict[str, tuple[ssl.SSLContext, dt.datetime]] = OrderedDict()

    @property
    def pem(self) -> str:
        """What sandboxes must trust."""
        return self._own.pem.decode()

    def context(self, host: str) -> ssl.SSLContext:
        """The server's side of TLS for ``host``; HTTP/1.1 is all that is offered."""
        known = self._contexts.get(host)
        if known is not None and certificates.now() < known[1]:
            self._contexts.move_to_end(host)
            return known[0]
        leaf = certificates.issue(self._own, [host], LEAF_LIFETIME, self._leaf_key)
        context = certificates.server_context(leaf, self._own.pem, self._directory)
        context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
        context.set_alpn_protocols(["http/1.1"])
        context.sni_callback = lambda _, asked, __: (
            None if asked is None or name_of(asked) == host else ssl.ALERT_DESCRIPTION_UNRECOGNIZED_NAME
        )
        self._contexts[host] = (context, certificates.now() + LEAF_LIFETIME / 2)
        if len(self._contexts) > HOSTS_MAX:
            self._contexts.popitem(last=False)
        return context
