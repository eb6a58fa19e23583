"""Draws the lifecycle from its table: ``python -m wardian.model.picture > docs/lifecycle.svg``.

Only places are decided here; every state and every arrow comes from ``TRANSITIONS``. Pure text, no
dependencies, so the picture is the same everywhere and a test can compare it.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from xml.sax.saxutils import escape

from wardian.model.sandbox import TRANSITIONS, State
from wardian.model.usage import KIND_OF_STATE, UsageKind

WIDTH, HEIGHT = 860, 545
BOX_WIDTH, BOX_HEIGHT = 132, 46

PLACES: dict[State, tuple[int, int]] = {
    State.CREATING: (110, 90),
    State.RUNNING: (420, 90),
    State.FROZEN: (760, 90),
    State.SNAPSHOTTING: (760, 210),
    State.PAUSING: (560, 300),
    State.RESUMING: (280, 300),
    State.PAUSED: (420, 420),
    State.KILLING: (110, 500),
    State.ENDED: (760, 500),
}

NOTES: dict[State, str] = {
    State.CREATING: "a row, an intent",
    State.RUNNING: "a machine, answering",
    State.FROZEN: "memory kept, no CPU",
    State.SNAPSHOTTING: "captured, goes on",
    State.PAUSING: "half a snapshot",
    State.RESUMING: "snapshot, new machine",
    State.PAUSED: "a snapshot, no machine",
    State.KILLING: "on its way out",
    State.ENDED: "a row and the log",
}

COLOURS: dict[UsageKind | None, str] = {
    UsageKind.COMPUTE: "#dbeafe",
    UsageKind.FROZEN: "#e0f2f1",
    UsageKind.STORAGE: "#fef3c7",
    None: "#f1f5f9",
}


def arrows() -> Iterator[tuple[State, State, list[str]]]:
    """Every pair of states with an arrow between them, and the events on it. Kills are drawn as one note."""
    for source, row in TRANSITIONS.items():
        targets: dict[State, list[str]] = {}
        for event, target in row.items():
            if target is not State.KILLING:
                targets.setdefault(target, []).append(event.value)
        for target, events in targets.items():
            yield source, target, events


def draw() -> str:
    """The picture, as SVG."""
    killable = [state.value for state, row in TRANSITIONS.items() if State.KILLING in row.values()]
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="ui-sans-serif, system-ui, sans-serif" font-size="13">',
        "<title>The life of a sandbox, drawn from the table in model/sandbox.py</title>",
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" '
        'orient="auto-start-reverse"><path d="M0 0 8 4 0 8z" fill="#475569"/></marker></defs>',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        *(_arrow(*arrow) for arrow in arrows()),
        *(_box(state) for state in State),
        f'<text x="20" y="{PLACES[State.KILLING][1] - 32}" fill="#475569">kill or machine lost, from '
        f"{escape(', '.join(killable))}:</text>",
        *_legend(),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _box(state: State) -> str:
    x, y = PLACES[state]
    left, top = x - BOX_WIDTH // 2, y - BOX_HEIGHT // 2
    return (
        f'<rect x="{left}" y="{top}" width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="9" '
        f'fill="{COLOURS[KIND_OF_STATE[state]]}" stroke="#334155"/>'
        f'<text x="{x}" y="{y - 3}" text-anchor="middle" font-weight="600" fill="#0f172a">'
        f"{state.value}</text>"
        f'<text x="{x}" y="{y + 14}" text-anchor="middle" font-size="10" fill="#475569">'
        f"{escape(NOTES[state])}</text>"
    )


def _arrow(source: State, target: State, events: list[str]) -> str:
    """A slightly bent line from box edge to box edge; an arrow back bends the other way, so both are seen."""
    (x1, y1), (x2, y2) = PLACES[source], PLACES[target]
    start, end = _edge(x1, y1, x2, y2), _edge(x2, y2, x1, y1)
    length = math.hypot(x2 - x1, y2 - y1)
    bend = 34
    middle_x = (start[0] + end[0]) / 2 - (y2 - y1) / length * bend
    middle_y = (start[1] + end[1]) / 2 + (x2 - x1) / length * bend
    label_x = (start[0] + end[0]) / 4 + middle_x / 2
    label_y = (start[1] + end[1]) / 4 + middle_y / 2
    words = " / ".join(events)
    return (
        f'<path d="M{start[0]:.0f} {start[1]:.0f} Q{middle_x:.0f} {middle_y:.0f} {end[0]:.0f} {end[1]:.0f}" '
        'fill="none" stroke="#475569" marker-end="url(#tip)"/>'
        f'<text x="{label_x:.0f}" y="{label_y + 4:.0f}" text-anchor="middle" font-size="11" fill="#1e3a8a" '
        f'stroke="white" stroke-width="4" paint-order="stroke">{escape(words)}</text>'
    )


def _edge(x1: float, y1: float, x2: float, y2: float) -> tuple[float, float]:
    """Where the line from the middle of one box to another leaves the first box."""
    dx, dy = x2 - x1, y2 - y1
    reach_x = (BOX_WIDTH / 2 + 3) / abs(dx) if dx else math.inf
    reach_y = (BOX_HEIGHT / 2 + 3) / abs(dy) if dy else math.inf
    share = min(reach_x, reach_y)
    return x1 + dx * share, y1 + dy * share


def _legend() -> Iterator[str]:
    for number, (kind, colour) in enumerate(COLOURS.items()):
        x = 20 + number * 110
        words = "as before, then nothing" if kind is None else kind.value
        yield (
            f'<rect x="{x}" y="14" width="14" height="14" rx="3" fill="{colour}" stroke="#334155"/>'
            f'<text x="{x + 20}" y="26" font-size="11" fill="#475569">{words}</text>'
        )


if __name__ == "__main__":
    sys.stdout.write(draw())
