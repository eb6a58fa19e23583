"""The owner of one sandbox: the only code that changes its state.

Everything that changes a sandbox is a command in its owner's queue. Every transition has the same shape: the
intent and the state in one transaction, the act, then the result, the state and the usage interval in one
transaction. A crash between them finds the intent open; ``reconciler.py`` holds the repair of each act.

What may use the guest without a turn is :meth:`Owner.use`: as long as the sandbox is *ready* that costs
nothing; otherwise it takes a turn to thaw, or to resume where the sandbox allows it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from sqlalchemy import Connection

from wardian.guest.guest import Guest, Tunnel
from wardian.isolation.port import Machine, MachineExit
from wardian.meter import intervals as meter
from wardian.model.errors import NotFound, WardianError
from wardian.model.sandbox import EndReason, Event, Sandbox, State, next_state
from wardian.sandboxes.commands import Commands
from wardian.sandboxes.workshop import Workshop
from wardian.store import intents, sandboxes
from wardian.store.database import DatabaseFull

T = TypeVar("T")
Also = Callable[[Connection], Any]

RECORD_RETRY_S = 1.0
LAST_WORDS_S = 1.0  # how long a machine whose guest failed may take to say why it died

_log = logging.getLogger(__name__)


def not_found(sandbox_id: str) -> NotFound:
    """An id that is unknown, ended, or another tenant's: one answer for all three."""
    return NotFound(
        f"Sandbox \"{sandbox_id}\" doesn't exist or you don't have access to it", code="sandbox_not_found"
    )


@dataclass(frozen=True, slots=True)
class Hooks:
    """What an owner asks of the house: who must know of a change, and acts it may have to begin itself."""

    changed: Callable[[Owner], None]
    resume: Callable[[Owner], Awaitable[None]]  # traffic reached a paused sandbox that resumes by itself
    lost: Callable[
        [Owner, EndReason, Mapping[str, Any]], Awaitable[None]
    ]  # its machine is gone or distrusted


class Owner:
    """One sandbox in the hands of this server. ``sandbox`` is its present value, never behind its row."""

    def __init__(self, works: Workshop, sandbox: Sandbox, hooks: Hooks) -> None:
        self.works = works
        self.sandbox = sandbox
        self.machine: Machine | None = None
        self.guest: Guest | None = None
        self.log = works.recorder.log(sandbox.id)
        self.log.always = {"isolation": sandbox.isolation}
        self.last_at = sandbox.created_at
        self._hooks = hooks
        self._commands = Commands(f"owner {sandbox.id}")
        self._ready = False
        self._users = 0
        self._idle_timer: asyncio.TimerHandle | None = None
        self._watch: asyncio.Task[None] | None = None
        self._chores: set[asyncio.Task[None]] = set()

    # ── turns

    async def turn(self, command: Callable[[], Awaitable[T]]) -> T:
        """Run ``command`` in the sandbox's queue. It goes on even if the caller is cancelled."""
        return await self._commands.put(command)

    def soon(self, command: Callable[[], Awaitable[Any]]) -> None:
        """Queue ``command`` and do not wait; what it fails with is logged."""
        self._commands.put(command).add_done_callback(self._log_failure)

    def _log_failure(self, done: asyncio.Future[Any]) -> None:
        if not done.cancelled() and (error := done.exception()) is not None:
            level = logging.INFO if isinstance(error, WardianError) else logging.ERROR
            _log.log(level, "sandbox %s: %s", self.sandbox.id, error, exc_info=error)

    def check_present(self) -> None:
        """Raise NotFound if the sandbox ended while a command waited for its turn."""
        if self.sandbox.state in (State.KILLING, State.ENDED):
            raise not_found(self.sandbox.id)

    # ── state

    async def commit(
        self,
        *events: Event,
        intent: tuple[str, Mapping[str, Any]] | None = None,
        outcome: str | None = None,
        also: Also | None = None,
        durable: bool = False,
        at: int | None = None,
        stored_bytes: int = 0,
        facts: Mapping[str, Any] | None = None,
        **changes: Any,
    ) -> None:
        """Apply ``events`` to the state in one transaction, with everything that belongs to it.

        ``intent`` (a verb and its data) is opened, ``outcome`` closes the open one, ``changes`` are fields
        of the sandbox, ``also`` is the caller's part of the transaction, ``facts`` go to the event log.
        """
        after, transaction = self._transition(events, intent, outcome, also, at, stored_bytes, changes)
        await self.works.database.write(transaction, durable=durable)
        self._become(after, events, facts or {})

    async def commit_failure(self, event: Event, why: str) -> None:
        """Record that an act failed, closing its intent; with the disk full, as soon as there is room.

        The machine, if there is one, must be back in order already: this changes only what is written.
        """
        state = self.sandbox.state
        try:
            await self.commit(event, outcome=f"failed: {why}", facts={"detail": why})
        except DatabaseFull:
            _log.warning("sandbox %s: the failure to %s cannot be recorded yet", self.sandbox.id, event)

            async def again() -> None:
                if self.sandbox.state is state:
                    await self.commit_failure(event, why)

            asyncio.get_running_loop().call_later(RECORD_RETRY_S, self.soon, again)
        self.consider_idle()

    def commit_behind(self, event: Event) -> None:
        """Apply ``event`` now and write it behind, in order with every other write, with the time of now."""
        after, transaction = self._transition((event,), None, None, None, None, 0, {})
        self.works.database.post(transaction)
        self._become(after, (event,), {})

    def _transition(
        self,
        events: tuple[Event, ...],
        intent: tuple[str, Mapping[str, Any]] | None,
        outcome: str | None,
        also: Also | None,
        at: int | None,
        stored_bytes: int,
        changes: Mapping[str, Any],
    ) -> tuple[Sandbox, Callable[[Connection], None]]:
        before = self.sandbox
        state = before.state
        for event in events:
            state = next_state(state, event)
        # Time within one sandbox never runs backwards, whatever the host's clock does.
        self.last_at = when = max(self.last_at, self.works.now_us() if at is None else at)
        if state is State.ENDED:
            changes = {**changes, "ended_at": when}
        after = replace(before, state=state, **changes)

        def transaction(conn: Connection) -> None:
            self.works.lease.fence(conn)
            sandboxes.change(conn, before.id, columns_of(after, changes))
            if outcome is not None:
                intents.close_intent(conn, before.id, at=when, outcome=outcome)
            if intent is not None:
                verb, data = intent
                intents.open_intent(conn, intents.Intent(before.id, verb, data, when))
            if state is State.ENDED:
                intents.forget(conn, before.id)
            meter.switch(conn, after, before.state, state, at=when, stored_bytes=stored_bytes)
            if also is not None:
                also(conn)

        return after, transaction

    def _become(self, after: Sandbox, events: tuple[Event, ...], facts: Mapping[str, Any]) -> None:
        self.sandbox = after
        self.log.always = {"isolation": after.isolation}
        for event in events:
            self.log.append(f"sandbox.{event}", epoch=after.epoch, **facts)
        self._hooks.changed(self)

    async def change(self, **changes: Any) -> None:
        """Change fields of the sandbox without a transition."""
        after = replace(self.sandbox, **changes)

        def transaction(conn: Connection) -> None:
            self.works.lease.fence(conn)
            sandboxes.change(conn, after.id, {name: getattr(after, name) for name in changes})

        await self.works.database.write(transaction)
        self.sandbox = after
        self._hooks.changed(self)

    # ── the guest

    @asynccontextmanager
    async def use(self) -> AsyncIterator[Guest]:
        """The guest, awake while the context lasts. Raises NotFound when there is none to be had."""
        self._users += 1
        self._cancel_idle_timer()
        try:
            if not self._ready:
                await self.turn(self._make_ready)
            guest = self.guest
            if not self._ready or guest is None:
                raise not_found(self.sandbox.id)
            yield guest
        finally:
            self._users -= 1
            self.consider_idle()

    async def _make_ready(self) -> None:
        if self.sandbox.state is State.FROZEN:
            await self.thaw()
        elif self.sandbox.state is State.PAUSED and self.sandbox.wakes_on_traffic:
            await self._hooks.resume(self)

    def bind(self, guest: Guest) -> None:
        """Make a guest this sandbox's: what it asks of the host is answered in the sandbox's name."""

        async def connect(address: str, port: int, stream: Tunnel) -> None:
            await self.works.outbound.connect(self.sandbox, address, port, stream)

        async def resolve(query: bytes) -> bytes:
            return await self.works.outbound.resolve(self.sandbox, query)

        def notice(kind: str, fields: Mapping[str, object]) -> None:
            self.log.append(f"guest.{kind}", **fields)

        def fault(error: Exception) -> None:
            if guest is self.guest:
                self.soon(lambda: self._distrust(guest, error))

        guest.on_connect = connect
        guest.on_resolve = resolve
        guest.on_notice = notice
        guest.on_fault = fault

    def adopt(self, machine: Machine, guest: Guest) -> None:
        """Take a machine with an attached guest as this sandbox's own. It is awake and ready from here on."""
        self.machine, self.guest, self._ready = machine, guest, True
        machine.on_memory_pressure(self._relieve_memory)
        self._watch = asyncio.create_task(self._watch_machine(machine), name=f"watch {self.sandbox.id}")
        self.consider_idle()

    def hold(self) -> None:
        """Send every further use of the guest to the queue, until :meth:`release`."""
        self._ready = False
        self._cancel_idle_timer()

    def release(self) -> None:
        """The guest may be used without a turn again, if there is one and it is awake."""
        self._ready = self.guest is not None and self.machine is not None and not self.machine.frozen
        self.consider_idle()

    async def disown(self) -> Machine | None:
        """Let go of the machine, whatever becomes of it, and of its guest, whose streams end."""
        machine, guest = self.machine, self.guest
        self.machine = self.guest = None
        self.hold()
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        if guest is not None:
            await guest.close()
        return machine

    async def _watch_machine(self, machine: Machine) -> None:
        ended = await machine.wait()
        self.soon(lambda: self._lost(machine, ended))

    async def _lost(self, machine: Machine, ended: MachineExit) -> None:
        if machine is not self.machine:
            return  # let go of meanwhile: its end was expected
        reason = EndReason.OUT_OF_MEMORY if ended.reason == "out_of_memory" else EndReason.MACHINE_LOST
        await self._hooks.lost(self, reason, {"exit": ended.reason, "detail": ended.detail})

    async def _distrust(self, guest: Guest, error: Exception) -> None:
        """The link broke or the guest misbehaved. If its machine is dying, let it say why; else end it."""
        machine = self.machine
        if machine is None or guest is not self.guest:
            return
        try:
            async with asyncio.timeout(LAST_WORDS_S):
                ended = await machine.wait()
        except TimeoutError:
            facts = {"exit": "guest_fault", "detail": str(error)}
            await self._hooks.lost(self, EndReason.MACHINE_LOST, facts)
        else:
            await self._lost(machine, ended)

    def _relieve_memory(self) -> None:
        guest = self.guest
        if guest is None:
            return
        self.log.append("machine.memory_pressure")
        chore = asyncio.create_task(self._quietly(guest.relieve_memory()))
        self._chores.add(chore)
        chore.add_done_callback(self._chores.discard)

    async def _quietly(self, work: Awaitable[None]) -> None:
        try:
            await work
        except WardianError as error:
            _log.info("sandbox %s: %s", self.sandbox.id, error)

    # ── freezing

    def consider_idle(self) -> None:
        """If nobody uses the guest, freeze it soon, unless something inside would notice."""
        options = self.works.options
        if options.freeze_idle and self._is_idle():
            self._cancel_idle_timer()
            self._idle_timer = asyncio.get_running_loop().call_later(options.idle_grace_s, self._freeze_soon)

    def _is_idle(self) -> bool:
        return self._ready and not self._users and self.sandbox.state is State.RUNNING

    def _cancel_idle_timer(self) -> None:
        if self._idle_timer is not None:
            self._idle_timer.cancel()
            self._idle_timer = None

    def _freeze_soon(self) -> None:
        self._idle_timer = None
        if self._is_idle() and self._commands.idle:
            self.soon(self._freeze_if_idle)

    async def _freeze_if_idle(self) -> None:
        """Only the agent itself is left inside, so nothing can tell a freeze from a long scheduling delay."""
        guest, machine = self.guest, self.machine
        if guest is None or machine is None or not self._is_idle():
            return
        try:
            async with asyncio.timeout(self.works.options.guest_timeout_s):
                stats = await guest.stats()
        except TimeoutError:
            return  # too busy to answer is not idle
        if stats["processes"] or not self._is_idle():
            return
        self.hold()  # a use that begins now takes a turn, and that turn thaws
        await machine.freeze()
        self.commit_behind(Event.FREEZE)

    async def thaw(self) -> None:
        """Wake a frozen sandbox. The record is written behind: nothing waits for a commit."""
        machine = self.machine
        assert machine is not None
        await machine.thaw()
        self.commit_behind(Event.THAW)
        self.release()

    async def close(self, patience_s: float) -> None:
        """Let go of everything in this process. The machine goes on."""
        await self._commands.close(patience_s)
        for chore in self._chores:
            chore.cancel()
        await self.disown()
        self.log.release()


def columns_of(after: Sandbox, changes: Mapping[str, Any]) -> dict[str, Any]:
    """The row's columns for the changed fields of a sandbox, and its state."""
    columns = {name: getattr(after, name) for name in changes} | {"state": after.state.value}
    if after.end_reason is not None:
        columns["end_reason"] = after.end_reason.value
    if after.state is State.ENDED:
        columns["idempotency_key"] = None  # the key may be used again
    return columns
