"""What begins runs by itself: schedules, and webhooks. Both go the one way in, :meth:`Runs.execute`, with a
key that makes a time, or a delivery, begin one run however often it is seen."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import re
import secrets
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from sqlalchemy import Connection

from wardian.model.confines import FREE, Confines
from wardian.model.errors import Invalid, NotFound, Unauthenticated, WardianError
from wardian.model.run import FINAL, Run, Trigger
from wardian.model.trigger import AgentTrigger, Missed, Overlap, Schedule
from wardian.runs.calendar import checked, latest_due, next_due
from wardian.runs.commits import check_value
from wardian.runs.service import Runs
from wardian.runs.works import RunWorks
from wardian.sandboxes.identity import new_id
from wardian.store import runs, triggers
from wardian.store.sealing import Seal

LATE_US = 60_000_000
"""A time that is seen later than that was missed."""

LOOK_MAX_S = 30.0
"""Clocks are set: however far away the next time is, we look."""

TOLERANCE_S = 300
"""How old, or how far ahead, a delivery's own time may be."""

_SIGNATURE = re.compile(r"t=(\d{1,12}),v1=([0-9a-f]{64})")
_DELIVERY = re.compile(r"[\x21-\x7e]{1,128}")
_log = logging.getLogger(__name__)


class Triggers:
    """Of all agents of a server. :meth:`open` before use, :meth:`close` after."""

    def __init__(self, works: RunWorks, service: Runs, seal: Seal) -> None:
        self._works, self._runs, self._seal = works, service, seal
        self._changed = asyncio.Event()
        self._clock: asyncio.Task[None] | None = None
        self._seen: int | None = None  # when the clock was looked at

    async def open(self) -> None:
        self._clock = asyncio.create_task(self._tick(), name="schedules")

    async def close(self) -> None:
        if self._clock is not None:
            self._clock.cancel()
            await asyncio.gather(self._clock, return_exceptions=True)

    # ── verbs

    async def schedule(
        self, tenant: str, agent: str, schedule: Schedule, input: Any, confines: Confines = FREE
    ) -> AgentTrigger:
        """Begin a run of an agent at times. Raises :class:`Invalid` for a schedule that is none."""
        check_value(input)
        schedule = checked(schedule)
        trigger = await self._new(tenant, agent, input, confines)
        trigger = replace(trigger, schedule=schedule, next_at=next_due(schedule, trigger.created_at))
        await self._add(trigger)
        self._changed.set()
        return trigger

    async def webhook(self, tenant: str, agent: str, confines: Confines = FREE) -> tuple[AgentTrigger, str]:
        """Begin a run for every signed delivery; also the secret to sign with, which is told once."""
        secret = secrets.token_hex(32)
        trigger = await self._new(tenant, agent, None, confines)
        trigger = replace(trigger, secret=self._seal.seal(secret, trigger.id))
        await self._add(trigger)
        return trigger, secret

    async def _new(self, tenant: str, reference: str, input: Any, confines: Confines) -> AgentTrigger:
        agent, _ = await self._runs.agents.get(tenant, reference)
        return AgentTrigger(new_id("t"), tenant, agent.id, self._works.now_us(), input, confines=confines)

    async def _add(self, trigger: AgentTrigger) -> None:
        def transaction(conn: Connection) -> None:
            self._works.lease.fence(conn)
            triggers.add(conn, trigger)

        await self._works.database.write(transaction, durable=True)

    async def list(self, tenant: str) -> Sequence[AgentTrigger]:
        return await self._works.database.read(lambda conn: triggers.of_tenant(conn, tenant))

    async def remove(self, tenant: str, trigger_id: str) -> None:
        """Raises NotFound."""

        def transaction(conn: Connection) -> None:
            self._works.lease.fence(conn)
            found = triggers.get(conn, trigger_id)
            if found is None or found.tenant != tenant:
                raise _not_found(trigger_id)
            triggers.remove(conn, trigger_id)

        await self._works.database.write(transaction, durable=True)

    # ── webhooks

    async def deliver(self, trigger_id: str, headers: Mapping[str, str], body: bytes, input: Any) -> Run:
        """Begin the run of a delivery, or find the one that it began before.

        It is signed our way (``Wardian-Signature: t=SECONDS,v1=HMAC`` over ``SECONDS.DELIVERY.body``, with
        the header ``Wardian-Delivery``, which may be absent) or GitHub's (``X-Hub-Signature-256``, over the
        body). Unauthenticated, also for a hook that does not exist.
        """
        trigger = await self._works.database.read(lambda conn: triggers.get(conn, trigger_id))
        sealed = None if trigger is None else trigger.secret
        secret = (
            secrets.token_hex(32)
            if trigger is None or sealed is None
            else self._seal.open(sealed, trigger.id)
        )
        delivery = self._verified(secret.encode(), headers, body)
        if trigger is None or sealed is None:
            raise _unsigned()
        detail = {"hook": trigger.id, "delivery": delivery}
        key = f"hook:{trigger.id}:{delivery}"
        return await self._runs.execute(
            trigger.tenant,
            trigger.agent_id,
            input,
            Trigger("webhook", detail),
            key=key,
            confines=trigger.confines,
        )

    def _verified(self, secret: bytes, headers: Mapping[str, str], body: bytes) -> str:
        """What a delivery is told apart by. Raises Unauthenticated."""
        ours = _SIGNATURE.fullmatch(headers.get("wardian-signature", ""))
        if ours is not None:
            delivery = headers.get("wardian-delivery", "")
            signed = _hmac(secret, b".".join((ours[1].encode(), delivery.encode(), body)))
            fresh = abs(self._works.now_us() / 1e6 - int(ours[1])) <= TOLERANCE_S
            if not hmac.compare_digest(signed, ours[2]) or not fresh:
                raise _unsigned()
            if delivery and not _DELIVERY.fullmatch(delivery):
                raise Invalid("a delivery's name has 1 to 128 printable characters", code="bad_delivery")
            return delivery or signed
        signed = _hmac(secret, body)
        theirs = headers.get("x-hub-signature-256", "").removeprefix("sha256=")
        if not hmac.compare_digest(signed.encode(), theirs.encode()):
            raise _unsigned()
        return signed  # the name that GitHub gives it is not signed

    # ── the clock

    async def _tick(self) -> None:
        while True:
            self._changed.clear()
            try:
                pause_s = await self._fire_all()
            except WardianError as error:
                _log.warning("schedules: %s", error)
                pause_s = LOOK_MAX_S
            with suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._changed.wait()

    async def _fire_all(self) -> float:
        """Begin what is due; how many seconds there are until something else may be."""
        works = self._works
        now = works.now_us()
        if self._seen is None or now < self._seen:
            await self._come_back(now)
        self._seen = now
        held = False
        for trigger in await works.database.read(lambda conn: triggers.due(conn, now)):
            try:
                held |= not await self._fire(trigger, now)
            except Exception:  # whatever is wrong with one, the others are due
                _log.exception("schedule %s cannot be kept", trigger.id)
                held = True
        following = await works.database.read(lambda conn: triggers.next_time(conn, now))
        pause_s = LOOK_MAX_S if following is None else (following - works.now_us()) / 1e6
        return min(max(pause_s, 0.0), 1.0 if held else LOOK_MAX_S)

    async def _come_back(self, now: int) -> None:
        """The clock may have been set back: times that it had gone past are ahead again. One that began a run
        then begins no other, as its key is the same."""

        def transaction(conn: Connection) -> None:
            for each in triggers.later_than(conn, now):
                assert each.schedule is not None
                assert each.next_at is not None
                if (due := next_due(each.schedule, now)) < each.next_at:
                    triggers.fired(conn, each.id, next_at=due, run=None)

        await self._works.database.write(transaction)

    async def _fire(self, trigger: AgentTrigger, now: int) -> bool:
        """Begin the run of a time that has come. False: not yet, the run before is under way."""
        schedule, at = trigger.schedule, trigger.next_at
        assert schedule is not None
        assert at is not None
        at = latest_due(schedule, at, now)
        run = None
        busy = schedule.overlap is not Overlap.ALLOW and await self._is_under_way(trigger.last_run)
        if busy and schedule.overlap is Overlap.QUEUE:
            return False
        missed = now - at > LATE_US and schedule.missed is Missed.SKIP
        if not busy and not missed:
            run = await self._begin(trigger, at)
        await self._works.database.write(
            lambda conn: triggers.fired(conn, trigger.id, next_at=next_due(schedule, now), run=run)
        )
        return True

    async def _begin(self, trigger: AgentTrigger, at: int) -> str | None:
        detail = {"schedule": trigger.id, "at": at}
        try:
            run = await self._runs.execute(
                trigger.tenant,
                trigger.agent_id,
                trigger.input,
                Trigger("schedule", detail),
                key=f"schedule:{trigger.id}:{at}",
                confines=trigger.confines,
            )
        except WardianError as error:
            _log.warning("schedule %s: %s", trigger.id, error)
            return None
        return run.id

    async def _is_under_way(self, run_id: str | None) -> bool:
        if run_id is None:
            return False
        run = await self._works.database.read(lambda conn: runs.get(conn, run_id))
        return run is not None and run.state not in FINAL


def _hmac(secret: bytes, signed: bytes) -> str:
    return hmac.new(secret, signed, hashlib.sha256).hexdigest()


def _unsigned() -> Unauthenticated:
    return Unauthenticated(
        "the delivery is not signed with this hook's secret, or is too old",
        code="bad_signature",
        hint="Wardian-Signature: t=SECONDS,v1=HMAC-SHA256 of 'SECONDS.DELIVERY.body' in hexadecimal digits",
    )


def _not_found(trigger_id: str) -> NotFound:
    return NotFound(f"trigger '{trigger_id[:64]}' not found", code="trigger_not_found")


__all__ = ["Triggers"]
