"""The table of transitions: complete, and drawn."""

from __future__ import annotations

from pathlib import Path

import pytest

from wardian.model.errors import Conflict
from wardian.model.picture import draw
from wardian.model.sandbox import TRANSITIONS, Event, State, next_state
from wardian.model.usage import KIND_OF_STATE

PICTURE = Path(__file__).resolve().parents[2] / "docs/lifecycle.svg"


def test_the_picture_is_drawn_from_the_present_table() -> None:
    assert PICTURE.read_text() == draw(), "run: python -m wardian.model.picture > docs/lifecycle.svg"


def test_every_state_has_a_row_a_meter_and_a_way_to_its_end() -> None:
    assert set(TRANSITIONS) == set(State) == set(KIND_OF_STATE)
    for state in State:
        seen, frontier = set[State](), {state}
        while frontier:
            seen |= frontier
            frontier = {target for s in frontier for target in TRANSITIONS[s].values()} - seen
        assert State.ENDED in seen, state


def test_every_event_leads_somewhere_and_nothing_leaves_the_end() -> None:
    assert {event for row in TRANSITIONS.values() for event in row} == set(Event)
    assert TRANSITIONS[State.ENDED] == {}


def test_an_event_the_table_does_not_name_is_refused_with_a_hint() -> None:
    with pytest.raises(Conflict) as refused:
        next_state(State.PAUSED, Event.PAUSE)
    assert refused.value.code == "illegal_transition"
    assert refused.value.hint == "resume it first"
