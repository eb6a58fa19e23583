"""The tables at the end of a run, and the JSON beside them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.measure import Kind, Row, Section

STYLES = {Kind.WARDIAN: "bold cyan", Kind.PEER: "", Kind.FLOOR: "dim"}


def show(console: Console, sections: Sequence[Section]) -> None:
    """Print every section as a table, then the goals."""
    for section in sections:
        console.print(_table(section))
        for note in section.notes:
            console.print(f"  [dim]{note}[/dim]", highlight=False)
        console.print()
    goals = Table(title="Goals", title_justify="left", title_style="bold")
    for heading in ("goal", "limit", "reached", ""):
        goals.add_column(heading, justify="left" if heading == "goal" else "right")
    for goal in (goal for section in sections for goal in section.goals):
        verdict = "[green]met[/green]" if goal.met else "[red]missed[/red]"
        goals.add_row(
            goal.text, f"{number(goal.limit)} {goal.unit}", f"{number(goal.reached)} {goal.unit}", verdict
        )
    if goals.row_count:
        console.print(goals)


def write(directory: Path, stamp: str, facts: Mapping[str, Any], sections: Sequence[Section]) -> Path:
    """One JSON file with every sample."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{stamp}.json"
    body = {"when": stamp, **facts, "sections": [section.as_json() for section in sections]}
    path.write_text(json.dumps(body, indent=1) + "\n")
    return path


def number(value: float) -> str:
    """Three meaningful digits, no exponents."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def _table(section: Section) -> Table:
    table = Table(title=f"{section.title} ({section.unit})", title_justify="left", title_style="bold")
    table.add_column("")
    for heading in ("median", "p99", "min", "n", f"ratio to {section.subject}"):
        table.add_column(heading, justify="right")
    for row in section.rows:
        table.add_row(*_cells(section, row), style=STYLES[row.kind])
    return table


def _cells(section: Section, row: Row) -> tuple[str, ...]:
    if not row.samples:
        return (row.name, "-", "-", "-", "0", row.error or "not measured")
    ratio = section.ratio(row)
    spread = "" if ratio is None else f"{number(ratio.value)} × ({number(ratio.low)}-{number(ratio.high)})"
    single = len(row.samples) == 1
    return (
        row.name,
        number(row.median),
        "" if single else number(row.p99),
        "" if single else number(row.least),
        str(len(row.samples)),
        spread,
    )
