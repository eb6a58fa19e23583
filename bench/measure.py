"""The harness: contenders take turns, and every figure keeps its samples.

Contenders are interleaved round by round, in an order shuffled anew each round, so whatever else the machine
is doing hits all of them alike. Nothing here asserts a time: figures are reported, never judged by a test.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray


class Kind(StrEnum):
    """Whose figure it is."""

    WARDIAN = "wardian"
    PEER = "peer"
    FLOOR = "floor"  # what our measuring itself costs (an SDK talking to a server that does nothing)


@dataclass(frozen=True, slots=True)
class Contender:
    """One way of doing a thing. ``once`` does it and returns what it measured, in the section's unit.

    Only the act itself is timed, by ``once``; making ready and clearing away are its own business. A slow
    contender may sit out: it takes part in every ``every``-th round.
    """

    name: str
    once: Callable[[], float]
    kind: Kind = Kind.PEER
    every: int = 1


@dataclass(frozen=True, slots=True)
class Row:
    """The samples of one contender, in the section's unit. ``error`` says why there are none."""

    name: str
    kind: Kind
    samples: tuple[float, ...]
    error: str = ""

    @property
    def median(self) -> float:
        return float(np.median(self.samples))

    @property
    def p99(self) -> float:
        """The 99th percentile; with fewer than 100 samples that is (nearly) the worst one."""
        return float(np.percentile(self.samples, 99))

    @property
    def least(self) -> float:
        return min(self.samples)


@dataclass(frozen=True, slots=True)
class Ratio:
    """How many times one median is another, with a 95 % interval (bootstrap)."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Goal:
    """What we set out to reach, and what was reached."""

    text: str
    limit: float
    reached: float
    unit: str

    @property
    def met(self) -> bool:
        return self.reached <= self.limit


@dataclass(frozen=True, slots=True)
class Section:
    """One table: rows to be compared with each other, all in ``unit``; lower (or ``higher``) is better."""

    name: str
    title: str
    unit: str
    subject: str  # the row that the ratios refer to
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()
    goals: tuple[Goal, ...] = ()
    higher: bool = False

    def row(self, name: str) -> Row | None:
        return next((row for row in self.rows if row.name == name and row.samples), None)

    def ratio(self, row: Row) -> Ratio | None:
        """``row`` against the subject: more than 1 is in the subject's favour. None where there is a 0."""
        subject = self.row(self.subject)
        if subject is None or not row.samples or row.name == self.subject or not subject.median * row.median:
            return None
        return ratio(subject.samples, row.samples) if self.higher else ratio(row.samples, subject.samples)

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "title": self.title,
            "unit": self.unit,
            "higher_is_better": self.higher,
            "subject": self.subject,
            "notes": list(self.notes),
            "rows": [self._row_json(row) for row in self.rows],
            "goals": [
                {"text": g.text, "limit": g.limit, "reached": g.reached, "unit": g.unit, "met": g.met}
                for g in self.goals
            ],
        }

    def _row_json(self, row: Row) -> dict[str, Any]:
        facts: dict[str, Any] = {"name": row.name, "kind": row.kind.value}
        if not row.samples:
            return facts | {"error": row.error}
        against = self.ratio(row)
        return facts | {
            "n": len(row.samples),
            "median": row.median,
            "p99": row.p99,
            "min": row.least,
            "ratio": None if against is None else [against.value, against.low, against.high],
            "samples": [round(sample, 4) for sample in row.samples],
        }


def ratio(above: Sequence[float], below: Sequence[float], *, draws: int = 1000) -> Ratio:
    """median(above) / median(below), with the middle 95 % of what redrawing both sides gives."""
    dice = np.random.default_rng(1)
    medians = [_redrawn_medians(np.asarray(side, dtype=float), draws, dice) for side in (above, below)]
    low, high = np.percentile(medians[0] / medians[1], [2.5, 97.5])
    return Ratio(float(np.median(above) / np.median(below)), float(low), float(high))


def _redrawn_medians(samples: NDArray[Any], draws: int, dice: np.random.Generator) -> NDArray[Any]:
    picked = dice.integers(0, len(samples), size=(draws, len(samples)))
    medians: NDArray[Any] = np.median(samples[picked], axis=1)
    return medians


def take_turns(
    contenders: Iterable[Contender], *, rounds: int, tick: Callable[[], None], warm_up: int = 1
) -> tuple[Row, ...]:
    """``rounds`` counted rounds after ``warm_up`` uncounted ones. Who fails is out, with the reason."""
    field = list(contenders)
    samples: dict[str, list[float]] = {contender.name: [] for contender in field}
    errors: dict[str, str] = {}
    dice = random.Random(1)
    for number in range(-warm_up, rounds):
        for contender in dice.sample(field, len(field)):
            if contender.name in errors or (number > 0 and number % contender.every):
                continue
            try:
                value = contender.once()
            except Exception as error:  # a peer that does not work here must not end the run
                errors[contender.name] = f"{type(error).__name__}: {error}"[:300]
                continue
            if number >= 0:
                samples[contender.name].append(value)
        tick()
    return tuple(
        Row(c.name, c.kind, () if c.name in errors else tuple(samples[c.name]), errors.get(c.name, ""))
        for c in field
    )
