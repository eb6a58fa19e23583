"""Executors that share a Postgres database: the work of one that is gone is carried on by another, from where
it was, and one that was thought gone does nothing more."""

from __future__ import annotations

import asyncio
import signal
import time
from dataclasses import replace

from tests.contract.executors import Executor, Journals, Start, Tables
from tests.postgres import Postgres

from wardian.runs.engines.journals import PostgresJournal
from wardian.runs.engines.survey import survey

RUNS = 5


def test_runs_of_an_executor_that_was_killed_are_carried_on_by_another(
    on_postgres: Journals, start: Start, tables: Tables
) -> None:
    one, two = start("one", on_postgres("one")), start("two", on_postgres("two"))
    hers, his = _begun(one, tables, "a"), _begun(two, tables, "b")
    rests = tables.write("rests", "rest")
    one.do("begin", rests, 0)
    one.until("ended", rests)
    two.do("begin", hers[0], 0)  # it is under way, and stays where it is
    one.kill()
    for run in hers:
        two.until("began", run, "hold")
    two.do("release")
    for run in [*hers, *his, rests]:
        two.until("over", run)
    for run in hers:
        assert tables.attempts(run) == [
            ("step", "one", True),
            ("hold", "one", False),  # it was interrupted, and made again
            ("hold", "two", True),
            ("step", "two", True),
            ("", "two", True),
        ]
    assert tables.attempts(rests) == [("rest", "one", True), ("", "two", True)]
    for run in his:
        assert tables.attempts(run) == [(act, "two", True) for act in ("step", "hold", "step", "")]
    two.end()


def test_whichever_executor_hears_of_it_sees_to_what_another_one_has(
    on_postgres: Journals, start: Start, tables: Tables
) -> None:
    one, two = start("one", on_postgres("one")), start("two", on_postgres("two"))
    rests, lingers = tables.write("rests", "rest"), tables.write("lingers", "linger", "rest")
    for run in (rests, lingers):
        one.do("begin", run, 0)
    one.until("ended", rests)
    two.do("nudge", rests)
    two.until("over", rests)
    one.until("began", lingers)
    two.do("begin", lingers, 0)  # it is told of it once it rests
    one.do("release")
    one.until("ended", lingers, "rest")
    for executor in (one, two):
        executor.send("begin at once", lingers, 0)
    for executor in (one, two):
        assert executor.answer("begin at once") == ""
    while tables.acts(lingers)[-1] or not tables.attempts(lingers)[-1][2]:
        time.sleep(0.01)
    one.end()
    two.end()
    assert tables.attempts(rests) == [("rest", "one", True), ("", "two", True)]
    assert tables.attempts(lingers)[:2] == [("linger", "one", True), ("rest", "one", True)]
    assert tables.acts(lingers)[2:] == [""]


def test_no_word_is_lost_among_executors_that_wake_the_same_runs(
    on_postgres: Journals, start: Start, tables: Tables
) -> None:
    executors = [start(name, on_postgres(name)) for name in ("one", "two")]
    runs = [tables.write(f"r{number}", "mind") for number in range(4)]
    for run in runs:
        executors[0].do("begin", run, 0)
    for executor in executors:
        executor.send("chatter", runs, 10)
    for executor in executors:
        executor.answer("chatter")
    for executor in executors:
        executor.end()


def test_an_executor_that_slept_beyond_its_lease_does_nothing_more(
    on_postgres: Journals, start: Start, tables: Tables
) -> None:
    one, two = start("one", on_postgres("one")), start("two", on_postgres("two"))
    hers = _begun(one, tables, "a")
    rests = tables.write("rests", "rest", "rest")
    one.do("begin", rests, 0)
    one.until("ended", rests)
    one.signal(signal.SIGSTOP)
    for run in hers:
        two.until("began", run, "hold")
    two.until("ended", rests)
    one.signal(signal.SIGCONT)
    one.until("lost")
    assert one.ask("begin", "r9", 0) == "engine_lost"
    one.do("nudge", rests)
    assert two.ask("begin", rests, 0) == ""
    two.until("over", rests)
    two.do("release")
    for run in hers:
        two.until("over", run)
    one.do("close")
    cancelled = {told[1] for told in one.told if told[0] == "cancelled"}
    assert cancelled == set(hers)
    for run in hers:  # what it had under way committed nothing, and it made no attempt after it woke
        assert [by for _, by, _ in tables.attempts(run)] == ["one", "one", "two", "two", "two"]
        assert [act for act, _, ended in tables.attempts(run) if ended] == ["step", "hold", "step", ""]
    two.end()


def test_an_executor_that_closes_hands_over_at_once(
    on_postgres: Journals, start: Start, tables: Tables
) -> None:
    journal = on_postgres("one")
    assert isinstance(journal, PostgresJournal)
    one = start("one", replace(journal, lease_s=1000))
    (run,) = _begun(one, tables, "a", count=1)
    two = start("two", on_postgres("two"))
    seen = asyncio.run(survey(journal))
    assert [executor.split(" ")[0] for executor in seen.executors] == ["one/1", "two/1"]
    assert seen.runs == 1
    one.end()  # its lease would last for a quarter of an hour
    two.until("began", run, "hold")

    stranger = start("three", on_postgres("three"), opened=False, version="1")
    assert stranger.ask("open") == "engine_version_differs"
    two.end()


def test_while_its_database_is_away_an_executor_rests_and_then_goes_on(
    on_postgres: Journals, start: Start, tables: Tables, postgres: Postgres
) -> None:
    journal = on_postgres("one")
    assert isinstance(journal, PostgresJournal)
    one = start("one", journal)
    (run,) = _begun(one, tables, "a", count=1)
    with postgres.away(journal.address):
        one.until("cancelled", run, "hold")  # another one could have taken over
        later = tables.write("later", "step")
        assert one.ask("begin", later, 0) == "engine_unreachable"
    one.do("release")
    for each in (run, later):
        one.until("over", each)
    assert tables.acts(run) == ["step", "hold", "hold", "step", ""]
    assert tables.acts(later) == ["step", ""]
    one.end()


def _begun(executor: Executor, tables: Tables, prefix: str, *, count: int = RUNS) -> list[str]:
    """Runs in the middle of their second attempt."""
    runs = [tables.write(f"{prefix}{number}", "step", "hold", "step") for number in range(count)]
    for run in runs:
        executor.do("begin", run, 0)
    for run in runs:
        executor.until("began", run, "hold")
    return runs
