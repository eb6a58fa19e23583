"""What every handler of the data plane is given, and the way to a guest."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from wardian.guest.guest import Guest
from wardian.model.errors import Kind, WardianError
from wardian.model.sandbox import LIVE, Sandbox, State

log = logging.getLogger(__name__)

Record = Callable[[str, str, Mapping[str, Any]], None]
"""Adds an event to a sandbox's log: sandbox id, kind, facts. Must not block."""

Passes = Callable[[Sandbox], Mapping[str, str]]
"""The variables with which the processes of a sandbox find the bridge."""

NOT_FOUND = "The sandbox was not found"
PORT_CLOSED = "The sandbox is running but port is not open"
TRANSITIONING = "The sandbox is still transitioning. Try again in a moment."
VISITS_EVERY_S = 60.0
VISITS_MAX = 4096
_LOST = frozenset({"machine_gone", "guest_fault"})


class Fleet(Protocol):
    """What the data plane needs of ``wardian.sandboxes.service.Sandboxes``."""

    async def locate(self, sandbox_id: str) -> Sandbox | None: ...
    async def locate_by_signature(self, matches: Any) -> Sandbox | None: ...
    def guest(self, sandbox_id: str) -> Any: ...
    async def metrics(
        self, tenant: str, sandbox_id: str, start_us: int | None, end_us: int | None
    ) -> Any: ...


class Unreachable(Exception):
    """The proxy's own answer: there is no guest to ask. ``status`` and ``message`` are the protocol's.

    The protocol has one word for a sandbox that is gone and one that is ``paused``; people are told which.
    """

    def __init__(self, status: int, message: str, port: int | None = None, *, paused: bool = False) -> None:
        super().__init__(message)
        self.status, self.message, self.port, self.paused = status, message, port, paused


class Visits:
    """Records who comes to a sandbox's ports, without letting the public fill its log.

    The first request to a port is recorded at once, later ones as a number, once in :data:`VISITS_EVERY_S`.
    """

    def __init__(self, record: Record) -> None:
        self._record = record
        self._seen: dict[tuple[str, int], tuple[float, int]] = {}

    def note(self, sandbox_id: str, port: int, protocol: str) -> None:
        now = asyncio.get_running_loop().time()
        since, count = self._seen.get((sandbox_id, port), (-VISITS_EVERY_S, 0))
        count += 1
        if now - since >= VISITS_EVERY_S:
            self._record(sandbox_id, "port.visit", {"port": port, "protocol": protocol, "requests": count})
            since, count = now, 0
            self._forget(now)
        self._seen[sandbox_id, port] = (since, count)

    def _forget(self, now: float) -> None:
        if len(self._seen) > VISITS_MAX:
            old = [key for key, (since, _) in self._seen.items() if now - since >= VISITS_EVERY_S]
            for key in old or list(self._seen):
                del self._seen[key]


@dataclass(frozen=True, slots=True)
class Plane:
    """The data plane's connections to the rest of the house."""

    sandboxes: Fleet
    record: Record
    visits: Visits
    passes: Passes = lambda sandbox: {}
    tasks: set[asyncio.Task[None]] = field(default_factory=set)

    @asynccontextmanager
    async def guest(self, sandbox_id: str) -> AsyncIterator[Guest]:
        """The guest, awake for as long as the context lasts. Raises :class:`Unreachable`."""
        async with AsyncExitStack() as stack:
            try:
                guest = await stack.enter_async_context(self.sandboxes.guest(sandbox_id))
            except WardianError as error:
                raise unreachable(error) from error
            yield guest

    async def is_lost(self, sandbox_id: str) -> bool:
        """Whether the sandbox went away (ended, or was paused) while it was being asked something."""
        sandbox = await self.sandboxes.locate(sandbox_id)
        return sandbox is None or sandbox.state not in LIVE

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Let ``work`` go on after the request that began it. What it fails with is logged, not raised."""
        task = asyncio.create_task(_quietly(work))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)


async def _quietly(work: Coroutine[Any, Any, None]) -> None:
    try:
        await work
    except WardianError as error:
        log.debug("background work of the data plane ended early: %s", error)
    except Exception:
        log.exception("background work of the data plane failed")


def can_answer(sandbox: Sandbox | None) -> bool:
    """Whether a request may be passed on: the sandbox lives, is on its way, or may be resumed by traffic."""
    if sandbox is None or sandbox.state in (State.KILLING, State.ENDED):
        return False
    return sandbox.state is not State.PAUSED or sandbox.wakes_on_traffic


def answering(sandbox: Sandbox | None) -> Sandbox:
    """The sandbox, if a request may be passed on to it. Raises :class:`Unreachable`."""
    if sandbox is None or not can_answer(sandbox):
        public = sandbox is not None and sandbox.spec.allow_public_traffic
        paused = public and sandbox is not None and sandbox.state is State.PAUSED
        raise Unreachable(502, NOT_FOUND, paused=paused)
    return sandbox


def unreachable(error: WardianError) -> Unreachable:
    """Why a guest could not be had, in the proxy's words."""
    if error.kind is Kind.NOT_FOUND or error.code in _LOST:
        return Unreachable(502, NOT_FOUND)
    if error.kind is Kind.CONFLICT:
        return Unreachable(409, TRANSITIONING)
    if error.kind is Kind.LIMIT:
        return Unreachable(429, str(error))
    if error.kind in (Kind.UNAVAILABLE, Kind.TIMEOUT):
        return Unreachable(503, str(error))
    return Unreachable(500, str(error))
