"""The connection to an upstream that an exchange keeps for its next request."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from wardian.bridge.passes import Holder
from wardian.bridge.process.works import Wire, Works

REUSE_S = 4.0
"""How long an idle connection is good for a request that must not be sent twice."""

At = tuple[str, int, bool, str | None]
"""Host, port, whether over TLS, and the address if it matters."""


class Upstream:
    """Of one exchange: at most one connection."""

    def __init__(self, works: Works, holder: Holder) -> None:
        self._works, self._holder = works, holder
        self._wire: Wire | None = None
        self._at: At | None = None
        self._used_at = 0.0

    async def connect(self, facts: Mapping[str, Any], *, fresh: bool) -> Wire:
        """To where the server said. ``fresh``: a request that must not be sent twice will go over it."""
        at: At = (facts["host"], facts["port"], facts["tls"], facts["address"])
        known = self._wire
        if known is not None:
            idle = time.monotonic() - self._used_at
            if self._at == at and not known.over and (not fresh or idle < REUSE_S):
                return known
            self.drop()
        host, port, tls, address = at
        self._wire = await self._works.dial(self._holder, host, port, tls=tls, address=address)
        self._at = at
        return self._wire

    def used(self, *, good: bool) -> None:
        """A request is over; ``good``: another may follow it."""
        self._used_at = time.monotonic()
        if not good:
            self.drop()

    def drop(self) -> None:
        if self._wire is not None:
            self._wire.close()
            self._wire = self._at = None
