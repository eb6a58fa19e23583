"""What every engine promises, on each of its databases. The processes are real, and killed for real."""

from __future__ import annotations

import secrets
import time

from tests.contract.executors import DEATHS, Executor, Journals, Start, Tables


def test_a_run_is_attempted_until_it_is_over_and_not_again(
    journals: Journals, start: Start, tables: Tables
) -> None:
    one = start("one", journals("one"))
    run = tables.write("r1", "step", "raise", "rest", "step")
    one.do("begin", run, 0)
    one.do("begin", run, 0)  # the same one
    one.until("ended", run, "raise")
    one.do("nudge", run)  # it would be tried again by itself, a little later
    one.until("ended", run, "rest")
    one.do("nudge", run)
    one.until("over", run)
    for harmless in (run, "r0"):
        one.do("nudge", harmless)
    one.do("begin", run, 0)
    assert tables.acts(one_more(one, tables)) == ["step", ""]
    assert tables.acts(run) == ["step", "raise", "rest", "step", ""]

    tables.write(run, "step", "raise", "rest", "step", "over before", "hold")
    one.told.clear()
    one.do("begin", run, 1)
    one.until("began", run, "hold")
    one.do("begin", run, 1)
    one.do("release")
    one.until("over", run)
    assert tables.acts(run)[5:] == ["hold", ""]
    one.end()


def one_more(executor: Executor, tables: Tables) -> str:
    """Begins a run and sees it end: by then whatever else would have begun has."""
    run = tables.write(secrets.token_hex(8), "step")
    executor.do("begin", run, 0)
    executor.until("over", run)
    return run


def test_what_was_under_way_is_carried_on_after_a_kill_and_after_a_close(
    journals: Journals, start: Start, tables: Tables
) -> None:
    one = start("one", journals("one"))
    held, rests, fresh = (
        tables.write("r1", "step", "hold", "step"),
        tables.write("r2", "rest", "rest"),
        tables.write("r3", "hold"),
    )
    one.do("begin", held, 0)
    one.do("begin", rests, 0)
    one.until("ended", rests)
    one.until("began", held, "hold")
    one.do("begin", fresh, 0)
    one.kill()  # whatever became of it: begin had returned

    two = start("one", journals("one"))
    two.do("begin", rests, 0)  # as a server does with all that has not ended
    two.until("ended", rests)
    for run in (held, fresh):
        two.until("began", run, "hold")
    two.end()
    assert {event for event in two.told if event[0] == "cancelled"} == {
        ("cancelled", held, "hold"),
        ("cancelled", fresh, "hold"),
    }

    three = start("one", journals("one"))
    three.do("release")
    three.do("begin", rests, 0)
    for run in (held, rests, fresh):
        three.until("over", run)
    three.end()
    assert tables.acts(held) == ["step", "hold", "hold", "hold", "step", ""]
    assert [act for act, _, ended in tables.attempts(fresh) if ended] == ["hold", ""]
    assert tables.acts(rests) == ["rest", "rest", ""]


def test_runs_of_an_older_version_of_the_engine_are_begun_anew(
    journals: Journals, start: Start, tables: Tables
) -> None:
    older = start("one", journals("one"), version="1")
    run, rests = tables.write("r1", "step", "hold", "step"), tables.write("r2", "rest")
    older.do("begin", run, 3)
    older.until("began", run, "hold")
    older.do("begin", rests, 0)
    older.until("ended", rests)
    older.kill()

    newer = start("one", journals("one"))
    newer.do("release")
    for each in (run, rests):
        newer.until("over", each)
    newer.do("begin", run, 3)
    newer.do("begin", rests, 0)
    one_more(newer, tables)
    newer.end()
    assert tables.acts(run) == ["step", "hold", "hold", "step", ""]
    assert tables.acts(rests) == ["rest", ""]


def test_what_is_forgotten_is_on_record_no_more(journals: Journals, start: Start, tables: Tables) -> None:
    """Of a run that is over, every generation; not of one that is under way, nor of another's."""
    one = start("one", journals("one"))
    run, other = tables.write("r1", "rest"), tables.write("r10", "rest")
    for each in (run, other):
        one.do("begin", each, 0)
        one.until("ended", each)
    one.do("forget", run, 0)
    one.until("forgot", "False")  # and it is nudged
    one.until("over", run)
    one.told.clear()
    one.do("begin", run, 1)
    one.until("over", run)
    one.told.clear()
    while ("forgot", "True") not in one.told:  # it is just about to end
        one.do("forget", run, 1)
    one.do("forget", run, 1)
    attempts = len(tables.acts(run))
    one.do("begin", run, 0)  # a run of which nothing is known
    one.until("began", run)
    one.end()
    assert len(tables.acts(run)) > attempts
    two = start("one", journals("one"))
    two.do("nudge", other)
    two.until("over", other)


def test_runs_that_rest_are_in_no_workflow_and_no_task(
    journals: Journals, start: Start, tables: Tables
) -> None:
    one = start("one", journals("one"))
    idle = at_rest(one)
    runs = [tables.write(f"r{number}", "rest") for number in range(30)]
    for run in runs:
        one.do("begin", run, 0)
    for run in runs:
        one.until("ended", run)
    assert at_rest(one) == idle
    for run in runs:
        one.do("nudge", run)
    for run in runs:
        one.until("over", run)
    assert [tables.acts(run) for run in runs] == [["rest", ""]] * len(runs)
    one.end()


def at_rest(executor: Executor) -> str:
    """How many tasks there are when no workflow is under way."""
    while (census := executor.census())[1] != "0":
        time.sleep(0.01)
    return census[2]


def test_a_run_that_is_begun_several_times_at_once_is_attempted_once_at_a_time(
    journals: Journals, start: Start, tables: Tables
) -> None:
    one, run = start("one", journals("one")), tables.write("r1", "hold", "rest", "rest")
    one.do("begin at once", run, 0)
    one.until("began", run, "hold")
    one.do("begin at once", run, 0)
    one_more(one, tables)
    assert tables.acts(run) == ["hold"]
    one.do("release")
    one.until("ended", run, "rest")
    one.told.clear()
    one.do("nudge", run)
    one.until("ended", run, "rest")
    one.do("begin at once", run, 0)
    one.until("over", run)
    one_more(one, tables)
    assert tables.acts(run) == ["hold", "rest", "rest", ""]
    one.end()


def test_a_run_that_rests_is_woken_wherever_its_executor_dies(
    journals: Journals, start: Start, tables: Tables
) -> None:
    for number, die_at in enumerate(DEATHS):
        run = tables.write(f"r{number}", "rest")
        one = start("one", journals("one"), die_at=die_at)
        one.do("begin", run, 0)
        one.until("ended", run)
        if "woken" in die_at:
            one.send("nudge", run)
        one.process.join(60)
        assert one.process.exitcode == -9, die_at
        two = start("one", journals("one"))
        two.do("begin", run, 0)  # as a server does with all that has not ended
        two.until("over", run)
        one_more(two, tables)
        assert tables.attempts(run) == [("rest", "one", True), ("", "one", True)], die_at
        at_rest(two)  # the next one has nothing to take over
        two.end()


def test_no_word_is_lost_on_a_run_that_comes_to_rest_or_wakes(
    journals: Journals, start: Start, tables: Tables
) -> None:
    one = start("one", journals("one"))
    runs = [tables.write(f"r{number}", "mind") for number in range(6)]
    for run in runs:
        one.do("begin", run, 0)
    one.do("chatter", runs, 10)
    one.send("chatter", runs, 10_000)
    one.until("ended")
    one.kill()
    two = start("one", journals("one"))
    for run in runs:
        two.do("begin", run, 0)  # as a server does with all that has not ended
    while tables.unheard():
        time.sleep(0.01)
    two.end()
