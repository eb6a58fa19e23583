"""The shore: where sandboxes meet the network. Decides, records, and then dials or resolves."""

from __future__ import annotations

import errno
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from wardian.guest.guest import Tunnel
from wardian.guest.pace import Bucket
from wardian.model.sandbox import Sandbox
from wardian.network.dns import Resolver
from wardian.network.outbound import is_own, relay
from wardian.network.policy import Decision, Policy

Record = Callable[[str, Mapping[str, object]], None]
"""Takes a sandbox's id and what happened: ``kind`` (connect, resolve), ``allowed``, ``reason``, details."""

CONNECTIONS_MAX = 256
LOOKUPS_MAX = 8
RECORDS_BURST, RECORDS_PER_S = 64.0, 10.0
_GAUGES_MAX = 4096


@dataclass(slots=True)
class _Gauge:
    """How much one sandbox has had recorded of late: a flood must not become one of records."""

    bucket: Bucket = field(default_factory=lambda: Bucket(RECORDS_BURST, RECORDS_PER_S))
    unrecorded: int = 0


class Shore:
    """One for all sandboxes of a server.

    ``record`` is called for every decision but, in a flood, not for every one: those left out are counted in
    the next one's ``unrecorded``.
    """

    def __init__(self, policy: Policy, record: Record, *, resolver: Resolver | None = None) -> None:
        self._policy = policy
        self._record = record
        self._resolver = resolver or Resolver()
        self._connections: Counter[str] = Counter()
        self._lookups: Counter[str] = Counter()
        self._gauges: dict[str, _Gauge] = {}

    def close(self) -> None:
        """Stop resolving. Connections end with their guests."""
        self._resolver.close()

    async def connect(self, sandbox: Sandbox, address: str, port: int, stream: Tunnel) -> None:
        """Relay ``stream`` to its destination until it ends. OSError: it may not go there, or cannot."""
        decision = self._decide(sandbox, address, port)
        self._note(
            sandbox.id,
            {
                "kind": "connect",
                "address": address,
                "port": port,
                "allowed": decision.allowed,
                "reason": decision.reason,
            },
        )
        if not decision.allowed:
            raise OSError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
        with _counted(self._connections, sandbox.id):
            await relay(address, port, stream)

    def _decide(self, sandbox: Sandbox, address: str, port: int) -> Decision:
        decision = self._policy.connect(address, port, internet=sandbox.spec.allow_internet)
        if not decision.allowed:
            return decision
        if self._connections[sandbox.id] >= CONNECTIONS_MAX:
            return Decision(False, "too_many_connections")
        if decision.reason != "extra_allowed" and is_own(address):
            return Decision(False, "own_address")
        return decision

    async def resolve(self, sandbox: Sandbox, query: bytes) -> bytes:
        """Answer a DNS query packet. OSError for what is none, or one too many."""
        if self._lookups[sandbox.id] >= LOOKUPS_MAX:
            raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        with _counted(self._lookups, sandbox.id):
            answer = await self._resolver.answer(
                query,
                internet=sandbox.spec.allow_internet,
                reachable=lambda address: self._policy.reach(address).allowed,
            )
        self._note(
            sandbox.id,
            {
                "kind": "resolve",
                "name": answer.name,
                "allowed": answer.outcome == "resolved",
                "reason": answer.outcome,
            },
        )
        return answer.packet

    def _note(self, sandbox_id: str, event: dict[str, object]) -> None:
        gauge = self._gauges.get(sandbox_id)
        if gauge is None:
            if len(self._gauges) >= _GAUGES_MAX:
                del self._gauges[next(iter(self._gauges))]
            gauge = self._gauges[sandbox_id] = _Gauge()
        if not gauge.bucket.take():
            gauge.unrecorded += 1
            return
        if gauge.unrecorded:
            event["unrecorded"] = gauge.unrecorded
            gauge.unrecorded = 0
        self._record(sandbox_id, event)


@contextmanager
def _counted(counter: Counter[str], key: str) -> Iterator[None]:
    counter[key] += 1
    try:
        yield
    finally:
        counter[key] -= 1
        if not counter[key]:
            del counter[key]
