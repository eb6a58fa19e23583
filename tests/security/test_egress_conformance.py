"""The egress conformance suite that is shipped, on every isolation driver that works here."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping

import pytest

from wardian.cli.conformance import check as suite
from wardian.cli.conformance.attacks import CASES, Case, Expected, Heard, Outcome, Verdict, judge
from wardian.model.errors import Kind, WardianError

ISOLATIONS = ("gvisor", pytest.param("microvm", marks=pytest.mark.slow))
"""Emulated, the microVM takes a minute on a quiet host: ``make test-slow``."""
HOME, ELSEWHERE = "198.51.100.1", "198.51.100.2"


async def _run(isolation: str) -> Mapping[str, Outcome]:
    async with suite.own_server() as server:
        outcomes = await suite.check(server, lambda _: None, isolation=isolation)
    return {outcome.case.name: outcome for outcome in outcomes}


@pytest.fixture(scope="module", params=ISOLATIONS)
def outcomes(request: pytest.FixtureRequest) -> Iterator[Mapping[str, Outcome]]:
    try:
        yield asyncio.run(_run(request.param))
    except WardianError as error:
        if error.kind not in (Kind.UNAVAILABLE, Kind.UNSUPPORTED) or request.param == "gvisor":
            raise
        pytest.skip(f"{request.param} does not work here: {error}")


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", [case.name for case in CASES])
def test_the_wall_holds(outcomes: Mapping[str, Outcome], name: str) -> None:
    outcome = outcomes[name]
    assert outcome.verdict is Verdict.HELD, outcome


ATTACK, CONTROL = Case("x", "x"), Case("x", "x", Expected.HOME)
ONCE = Case("x", "x", Expected.ONCE)
GET = Heard(HOME, 80, b"GET /")


@pytest.mark.parametrize(
    ("case", "seen", "heard", "leaked", "verdict"),
    [
        (ATTACK, "[refused]", [], [], Verdict.HELD),
        (ATTACK, "[refused]", [Heard(HOME, 80, b"")], [], Verdict.BREACH),  # a connection is enough
        (ATTACK, f"at={ELSEWHERE} ", [], [], Verdict.BREACH),
        (ATTACK, "", [], ["secret.evil.test"], Verdict.BREACH),
        (CONTROL, f"at={HOME} ", [GET], [], Verdict.HELD),
        (CONTROL, f"at={ELSEWHERE} ", [Heard(ELSEWHERE, 80, b"GET /")], [], Verdict.BREACH),
        (CONTROL, "[refused]", [], [], Verdict.BROKEN),
        (ONCE, f"at={HOME} ", [GET], [], Verdict.HELD),
        (ONCE, f"at={HOME} ", [GET, GET], [], Verdict.BREACH),
        (ONCE, "", [], [], Verdict.BROKEN),
    ],
)
def test_a_breach_is_seen(
    case: Case, seen: str, heard: list[Heard], leaked: list[str], verdict: Verdict
) -> None:
    assert judge(case, seen, heard, leaked, home=HOME, shown=True).verdict is verdict


def test_what_cannot_be_shown_is_not_called_broken() -> None:
    assert judge(CONTROL, "", [], [], home=HOME, shown=False).verdict is Verdict.NOT_SHOWN
