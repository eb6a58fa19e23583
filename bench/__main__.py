"""``python -m bench``: run the scenarios, print the tables, write JSON and the picture."""

from __future__ import annotations

import os
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from bench import facts, picture, report
from bench.lab import Lab
from bench.measure import Section
from bench.peers import sweep
from bench.scenarios import SCENARIOS

RESULTS = Path(__file__).resolve().parent / "results"

Only = Annotated[
    list[str] | None, typer.Option(help=f"Run just this scenario (repeat): {', '.join(SCENARIOS)}.")
]
Quick = Annotated[bool, typer.Option(help="A few rounds of each: about two minutes, and rougher figures.")]
Out = Annotated[Path, typer.Option(help="Where the JSON goes.")]
Picture = Annotated[
    Path | None, typer.Option(help="Where the picture goes (.svg or .png); beside the JSON if unset.")
]
Postgres = Annotated[
    str | None, typer.Option(help="A database's URL, for `runs` to have DBOS on it as well.")
]


def main(
    only: Only = None,
    quick: Quick = False,
    out: Out = RESULTS,
    picture_to: Picture = None,
    postgres: Postgres = None,
) -> None:
    """Measure Wardian side by side with what else could run the same command. No time is judged."""
    console = Console()
    names = list(only or SCENARIOS)
    if unknown := set(names) - set(SCENARIOS):
        raise typer.BadParameter(f"no such scenario: {', '.join(sorted(unknown))}")
    if os.geteuid():
        raise typer.BadParameter("must be run as root: peers and machines need it")
    stamp = datetime.now(UTC).strftime("%Y-%m-%dT%H-%M-%SZ")
    scratch = Path(tempfile.mkdtemp(prefix="bench-"))
    sections: list[Section] = []
    before = facts.load()
    lab = Lab(scratch, console, quick=quick, postgres=postgres)
    try:
        for name in names:
            sections += SCENARIOS[name](lab)
    finally:
        try:
            lab.close()
        finally:
            sweep(scratch)
    about = {
        "when": stamp,
        "quick": quick,
        "machine": facts.machine(),
        "load_before": before,
        "load_after": facts.load(),
    }
    report.show(console, sections)
    written = report.write(out, stamp, about, sections)
    drawing = picture_to or written.with_suffix(".svg")
    picture.draw(drawing, sections, about)
    console.print(f"\nEvery sample: {written}\nPicture: {drawing}", highlight=False)


if __name__ == "__main__":
    typer.run(main)
