"""What runs wait for: a time, a human, another run, a message. A wait is a row, with an answer once it is
over; asked for again, it is answered as it was."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection

from wardian.model.errors import Conflict, Invalid, LimitExceeded, NotFound
from wardian.model.run import FINAL, HELD, Message, Run, RunState, Wait
from wardian.runs.commits import check_key, check_value
from wardian.runs.course import SHORT_WAIT_US, Course, outcome_of
from wardian.runs.works import RunWorks
from wardian.sandboxes.identity import new_id
from wardian.store import runs

WAITS_OPEN_MAX = 64
MESSAGES_MAX = 1000
TOPIC_MAX = 128


class Waits:
    """Of all runs of a server."""

    def __init__(self, works: RunWorks, course: Course) -> None:
        self._works, self._course = works, course

    async def wait_for(
        self, run: Run, key: str, kind: str, asked: Mapping[str, Any], seconds: float | None = None
    ) -> Wait:
        """Have a run wait for something; again, the same. It has an ``answered_at`` once it is over.

        A short time is waited for here; with anything else the run's machine is soon put to rest.
        """
        check_key(key)
        now = self._works.now_us()
        until = None if seconds is None else now + int(seconds * 1e6)

        def transaction(conn: Connection) -> Wait:
            self._works.lease.fence(conn)
            known = runs.wait(conn, run.id, key)
            if known is not None:
                if (known.kind, dict(known.asked)) != (kind, dict(asked)):
                    raise Conflict(f"{key[:64]!r} waited for something else before", code="step_changed")
                return known
            if len(runs.open_waits(conn, run.id)) >= WAITS_OPEN_MAX:
                raise LimitExceeded(f"a run waits for {WAITS_OPEN_MAX} things at most", hint="answer some")
            wait = Wait(run.id, key, kind, asked, now, until)
            runs.add_wait(conn, wait)
            self._answer_at_once(conn, wait, now)
            found = runs.wait(conn, run.id, key)
            assert found is not None
            return found

        wait = await self._works.database.write(transaction, durable=True)
        if wait.answered_at is not None:
            return wait
        left_us = None if wait.until is None else wait.until - self._works.now_us()
        if left_us is None or left_us > SHORT_WAIT_US:
            self._course.tell(run.id)  # whoever follows it puts the machine to rest
            return wait
        await asyncio.sleep(max(left_us, 0) / 1e6)

        def over(conn: Connection) -> Wait:
            runs.answer(conn, run.id, key, None, self._works.now_us())
            found = runs.wait(conn, run.id, key)
            assert found is not None
            return found

        return await self._works.database.write(over)

    def _answer_at_once(self, conn: Connection, wait: Wait, now: int) -> None:
        """If what it waits for was there before it."""
        if wait.kind == "run":
            child = runs.get(conn, wait.asked["run"])
            if child is not None and child.state in FINAL:
                runs.answer(conn, wait.run_id, wait.key, outcome_of(child), now)
        elif wait.kind == "message":
            told = runs.untaken(conn, wait.run_id, wait.asked["topic"])
            if told:
                _deliver(conn, told[0], wait, now)

    async def send(self, target: Run, key: str, topic: str, body: Any, sender: Run | None = None) -> Message:
        """Tell a run something, once for a key; it has it when it asks for it, even if it is over by then and
        retried. Conflict: it is over, or was told something else with that key."""
        check_key(key)
        check_topic(topic)
        check_value(body)
        name = f"{'' if sender is None else sender.id}:{key}"
        now = self._works.now_us()
        message = Message(target.id, 0, name, topic, body, now, None if sender is None else sender.id)

        def transaction(conn: Connection) -> Message:
            self._works.lease.fence(conn)
            if (known := runs.message(conn, target.id, name)) is not None:
                if (known.topic, known.body) != (topic, body):
                    raise Conflict(f"{key[:64]!r} said something else before", code="step_changed")
                return known
            present = runs.get(conn, target.id)
            if present is None or present.state in FINAL:
                raise Conflict(f"run {target.id} is over", code="run_over", hint="retry it, or begin another")
            if len(runs.untaken(conn, target.id)) >= MESSAGES_MAX:
                raise LimitExceeded(
                    f"run {target.id} has {MESSAGES_MAX} messages that it did not ask for",
                    hint="let it receive them first",
                )
            sent = runs.send(conn, message)
            _deliver_if_awaited(conn, sent, now)
            return sent

        sent = await self._works.database.write(transaction, durable=True)
        self._works.log(target.id, "run.message", topic=topic, sender=sent.sender, number=sent.number)
        self._course.tell(target.id)
        return sent

    async def hold(self, run: Run) -> None:
        """Have a run rest until :meth:`let_go`, whatever it waits for. Conflict: it does not work now."""
        now = self._works.now_us()

        def transaction(conn: Connection) -> None:
            self._works.lease.fence(conn)
            present = runs.get(conn, run.id)
            if present is None or present.state not in (RunState.RUNNING, RunState.WAITING):
                raise Conflict(
                    f"run {run.id} is {run.state}", code="illegal_transition", hint="pause it while it runs"
                )
            if not _holds(conn, run):
                runs.add_wait(conn, Wait(run.id, new_id("h"), HELD, {}, now))

        await self._works.database.write(transaction, durable=True)
        self._works.log(run.id, "run.hold")
        self._course.tell(run.id)

    async def let_go(self, run: Run) -> None:
        """Conflict: nobody holds it."""

        def transaction(conn: Connection) -> None:
            self._works.lease.fence(conn)
            holds = _holds(conn, run)
            if not holds:
                raise Conflict(f"run {run.id} is not paused", code="not_paused")
            for each in holds:
                runs.answer(conn, run.id, each.key, None, self._works.now_us())

        await self._works.database.write(transaction, durable=True)
        self._works.log(run.id, "run.let_go")
        self._course.tell(run.id)

    async def answer(self, tenant: str, run_id: str, key: str, value: Any) -> None:
        """Answer what a run asked a human. Conflict: it was answered before."""
        check_value(value)
        run = await self._works.find(tenant, run_id)

        def transaction(conn: Connection) -> None:
            self._works.lease.fence(conn)
            wait = runs.wait(conn, run.id, key)
            if wait is None or wait.kind != "ask":
                raise NotFound(f"run {run.id} asked nothing as {key[:64]!r}", code="question_not_found")
            if not runs.answer(conn, run.id, key, value, self._works.now_us()):
                raise Conflict(f"{key[:64]!r} was answered before", code="answered_before")

        await self._works.database.write(transaction, durable=True)
        self._works.log(run.id, "run.answer", key=key)
        self._course.tell(run.id)


def _holds(conn: Connection, run: Run) -> Sequence[Wait]:
    return [each for each in runs.open_waits(conn, run.id) if each.kind == HELD]


def check_topic(topic: str) -> None:
    """Raise :class:`Invalid` unless it can be what a message is about; it may be empty."""
    if len(topic) > TOPIC_MAX or (topic and not topic.isprintable()):
        raise Invalid(f"a topic has at most {TOPIC_MAX} printable characters", code="bad_topic")


def _deliver(conn: Connection, message: Message, wait: Wait, now: int) -> None:
    told = {"topic": message.topic, "body": message.body, "from": message.sender}
    if runs.answer(conn, wait.run_id, wait.key, told, now):
        runs.take(conn, message, wait.key)


def _deliver_if_awaited(conn: Connection, message: Message, now: int) -> None:
    for wait in runs.open_waits(conn, message.run_id):
        if wait.kind == "message" and wait.asked["topic"] in (None, message.topic):
            _deliver(conn, message, wait, now)
            return


__all__ = ["Waits", "check_topic"]
