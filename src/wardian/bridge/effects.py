"""The ledger: what was about to be done outside, what came of it, and whom to ask where nobody knows.

An intent is on the disk before a request is sent, its answer before the program inside has all of it. The key
of an effect is (run, step, ordinal, method, URL, query and canonical body). Within a *step*, a name that the
program gives, the n-th equal request after a restore, or of the run's next machine, is the n-th of before:
its recorded answer is given again, and nothing is sent; one that is on its way is waited for. Without a step
every request is an effect of its own; only one that is *in doubt* (intended, and nobody works on it any
more), or whose answer never arrived inside, is recognised when it is asked for again.

A *speculative* sandbox, a branch that may be thrown away, has its effects written down only. They are sent,
when they are asked for again, once it is promoted.
"""

from __future__ import annotations

import asyncio
import base64
import secrets as random
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

from sqlalchemy import Connection

from wardian.model.effect import Effect, EffectState, Response
from wardian.model.errors import Conflict, LimitExceeded, NotFound
from wardian.model.grant import InDoubt
from wardian.store import effects as rows
from wardian.store.database import Database

ID_PREFIX = "eff_"
ROOMS_MAX = 4096
OPEN_MAX = 10_000
"""Of one sandbox, that may be replayed or decided yet: nothing removes them while it lives."""
_OPEN = frozenset(EffectState) - {EffectState.DONE}


class EffectHeld(Conflict):
    code = "effect_in_doubt"


class EffectSpeculative(Conflict):
    code = "effect_speculative"


class LedgerFull(LimitExceeded):
    code = "ledger_full"


@dataclass(frozen=True, slots=True)
class Intent:
    """``effect`` may be sent, under ``key`` if there is one; or ``replay`` is its answer already."""

    effect: str
    key: str = ""
    replay: Response | None = None


class Ledger:
    """``live``: the effects that a bridge is working on now."""

    def __init__(self, database: Database, now_us: Callable[[], int]) -> None:
        self._database, self._now_us = database, now_us
        self._live: dict[str, asyncio.Event] = {}  # set once nobody works on it any more
        self._room: dict[str, int] = {}  # by sandbox; only the database's writer touches it

    def interrupted(self) -> None:
        """The bridge ended: what it was working on is in doubt."""
        for effect_id in list(self._live):
            self._leave(effect_id)

    def _leave(self, effect_id: str) -> None:
        if (left := self._live.pop(effect_id, None)) is not None:
            left.set()

    async def intend(self, asked: Effect, policy: InDoubt, *, speculative: bool = False) -> Intent:
        """Write down an effect, or find out what became of it. Durable once it returns.

        Raises :class:`EffectHeld` where a human must decide, :class:`EffectSpeculative` for what waits until
        its sandbox is promoted. Effects whose policy is ``safe`` may happen twice, so they never wait.
        """
        speculative = speculative and policy is not InDoubt.SAFE

        def transaction(conn: Connection) -> Intent | Effect | asyncio.Event:
            known = rows.alike(conn, asked)
            for each in known:
                if each.state in _OPEN and each.id not in self._live:
                    return self._take_up(conn, each, asked, policy, speculative=speculative)
            for each in known:
                left = self._live.get(each.id)
                if left is not None and _before(each, asked):
                    return left  # whoever asked is gone, and its answer is on its way
                again = bool(asked.step) and _before(each, asked)
                if self._is_answered(each) and (again or not each.delivered):
                    self._change(conn, each, asked, EffectState.DONE, delivered=False)
                    return Intent(each.id, replay=each.response)
            self._take_room(conn, asked.sandbox)
            new = replace(asked, id=f"{ID_PREFIX}{random.token_hex(12)}", ordinal=len(known))
            if speculative:
                new = replace(new, state=EffectState.SPECULATED)
            rows.add(conn, new)
            return new if speculative else Intent(new.id, _key(new, policy))

        while isinstance(found := await self._database.write(transaction, durable=True), asyncio.Event):
            await found.wait()
        if isinstance(found, Effect):
            raise _held(found)
        self._live[found.effect] = asyncio.Event()
        return found

    def _change(
        self, conn: Connection, known: Effect, asked: Effect, state: EffectState, **values: object
    ) -> None:
        """It is the asker's from now on."""
        now = self._now_us()
        rows.change(conn, known.id, now, state, sandbox_id=asked.sandbox, epoch=asked.epoch, **values)

    def _take_room(self, conn: Connection, sandbox: str) -> None:
        """For one more effect. They are counted when as many came as there was room for the last time."""
        if self._room.get(sandbox, 0) <= 0:
            if len(self._room) >= ROOMS_MAX:
                self._room.clear()
            self._room[sandbox] = OPEN_MAX - rows.needed_of(conn, sandbox)
        if self._room[sandbox] <= 0:
            raise LedgerFull(
                f"{OPEN_MAX} effects of this sandbox may be replayed or decided yet, which is the limit",
                hint="decide on those in doubt (`wardian effects ls --in-doubt`); steps go when it ends",
            )
        self._room[sandbox] -= 1

    def _is_answered(self, effect: Effect) -> bool:
        return effect.state is EffectState.DONE and effect.id not in self._live

    def _take_up(
        self, conn: Connection, known: Effect, asked: Effect, policy: InDoubt, *, speculative: bool
    ) -> Intent | Effect:
        """An effect that is not done is asked for again."""
        may_send = (
            known.state is EffectState.APPROVED
            or (known.state is EffectState.SPECULATED and not speculative)
            or (known.state is EffectState.INTENDED and policy in (InDoubt.SAFE, InDoubt.KEYED))
        )
        if may_send:
            self._change(conn, known, asked, EffectState.INTENDED)
            return Intent(known.id, _key(known, policy))
        if known.state is EffectState.INTENDED:
            rows.change(conn, known.id, self._now_us(), EffectState.HELD)
            known = replace(known, state=EffectState.HELD)
        return known

    async def record(self, effect_id: str, response: Response) -> None:
        """The answer. Durable once it returns."""
        await self._database.write(
            lambda conn: rows.answer(conn, effect_id, self._now_us(), response), durable=True
        )

    def delivered(self, effect_id: str) -> None:
        """The program has all of the answer: whoever asks the same from now on means it anew."""
        self._database.post(lambda conn: rows.delivered(conn, effect_id, self._now_us()))
        self._leave(effect_id)

    async def unsent(self, effect_id: str) -> None:
        """Nothing of it left the bridge: as if it had not been asked for."""
        await self._database.write(lambda conn: rows.forget(conn, effect_id))
        self._leave(effect_id)

    def broke_off(self, effect_id: str) -> None:
        """It was sent, or begun to be, and there is no whole answer: in doubt."""
        self._leave(effect_id)

    # ── for people

    def is_in_doubt(self, effect: Effect) -> bool:
        return effect.state is EffectState.HELD or (
            effect.state is EffectState.INTENDED and effect.id not in self._live
        )

    async def list(self, tenant: str, *, in_doubt: bool, limit: int) -> Sequence[Effect]:
        """The newest first; only those in doubt, or all."""
        states: Collection[EffectState] = (
            (EffectState.INTENDED, EffectState.HELD) if in_doubt else tuple(EffectState)
        )
        found = await self._database.read(lambda conn: rows.page(conn, tenant, states, limit))
        return [each for each in found if not in_doubt or self.is_in_doubt(each)]

    async def get(self, tenant: str, effect_id: str) -> Effect:
        found = await self._database.read(lambda conn: rows.find(conn, tenant, effect_id))
        if found is None:
            raise _unknown(effect_id)
        return found

    async def speculated(self, tenant: str, sandbox: str) -> int:
        """How many effects of a sandbox are held, or were when it was promoted and not asked for since."""
        return await self._database.read(
            lambda conn: rows.count(conn, tenant, sandbox, EffectState.SPECULATED)
        )

    async def decide(self, tenant: str, effect_id: str, *, approve: bool) -> Effect:
        """A human's word on an effect in doubt, or one that waits: it may be sent once, or never."""

        def transaction(conn: Connection) -> Effect:
            known = rows.find(conn, tenant, effect_id)
            if known is None:
                raise _unknown(effect_id)
            if not self.is_in_doubt(known) and known.state is not EffectState.SPECULATED:
                raise Conflict(
                    f"effect {effect_id} is not in doubt: it is {known.state}", code="effect_clear"
                )
            state = EffectState.APPROVED if approve else EffectState.REJECTED
            rows.change(conn, effect_id, self._now_us(), state)
            return replace(known, state=state)

        return await self._database.write(transaction, durable=True)


def _before(known: Effect, asked: Effect) -> bool:
    """Whether an effect was last asked for by a machine that the asker's has taken the place of."""
    return known.sandbox != asked.sandbox or known.epoch < asked.epoch


def response_of(told: dict[str, object]) -> Response:
    """As the bridge tells it."""
    headers = told["headers"]
    assert isinstance(headers, list)
    return Response(
        int(str(told["status"])),
        tuple((str(name), str(value)) for name, value in headers),
        base64.b64decode(str(told["body"])),
        None if told["blob"] is None else str(told["blob"]),
        bool(told["whole"]),
    )


def response_values(response: Response) -> dict[str, object]:
    return {
        "status": response.status,
        "headers": [list(pair) for pair in response.headers],
        "body": base64.b64encode(response.body).decode(),
        "blob": response.blob,
        "whole": response.whole,
    }


def _key(effect: Effect, policy: InDoubt) -> str:
    """The Idempotency-Key: the same each time this effect is sent."""
    return f"wardian-{effect.id}" if policy is InDoubt.KEYED else ""


def _unknown(effect_id: str) -> NotFound:
    return NotFound(f"effect '{effect_id[:64]}' not found", code="effect_not_found")


def _held(effect: Effect) -> Conflict:
    if effect.state is EffectState.SPECULATED:
        return EffectSpeculative(
            f"this sandbox is a speculative branch: what it would do outside waits as {effect.id}",
            hint=f"`wardian sandbox promote {effect.sandbox}`, and ask again; or `wardian effects approve "
            f"{effect.id}` for this one alone",
        )
    if effect.state is EffectState.REJECTED:
        return EffectHeld(
            f"this request was rejected as {effect.id}: it may have been done already", code="effect_rejected"
        )
    return EffectHeld(
        f"a request like this one was sent before, and nobody knows whether it took effect ({effect.id})",
        hint=f"look at the other side, then `wardian effects approve {effect.id}` (send it again) or "
        f"`wardian effects reject {effect.id}`",
    )
