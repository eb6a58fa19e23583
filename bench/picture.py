"""The picture: one panel per section, horizontal bars, the ratio written on each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.measure import Kind, Section
from bench.report import number

COLOURS = {Kind.WARDIAN: "#1f6f8b", Kind.PEER: "#c9ccd1", Kind.FLOOR: "#e6dcc3"}
LEGEND = {Kind.WARDIAN: "Wardian", Kind.PEER: "peer", Kind.FLOOR: "floor: no sandbox behind it"}
BAR, GAP, TOP, FOOT = 0.26, 0.85, 0.75, 0.35  # inches
COLUMNS, WIDTH = 2, 7.2


def draw(path: Path, sections: Sequence[Section], facts: Mapping[str, Any]) -> None:
    """Write the picture, SVG or PNG by ``path``'s suffix. Bars are medians, whiskers reach to p99."""
    drawn = [section for section in sections if any(row.samples for row in section.rows)]
    columns = _spread(drawn)
    total = max(sum(map(_height, column)) for column in columns) + TOP + FOOT
    mpl.rcParams.update({"font.family": "DejaVu Sans", "svg.fonttype": "path", "svg.hashsalt": "bench"})
    figure = Figure(figsize=(COLUMNS * WIDTH, total), dpi=110, facecolor="white")
    for number_, column in enumerate(columns):
        at = total - TOP
        for section in column:
            bars = _height(section) - GAP
            place = ((number_ + 0.27) / COLUMNS, (at - bars - 0.35) / total, 0.68 / COLUMNS, bars / total)
            _panel(figure.add_axes(place), section)
            at -= _height(section)
    heading = 1 - 0.3 / total
    figure.text(0.01, heading, "Wardian, side by side", fontsize=15, fontweight="bold", va="center")
    figure.text(0.01, 0.15 / total, _footnote(facts), fontsize=7.5, color="#666666", va="center")
    _legend(figure, heading)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def _height(section: Section) -> float:
    """Inches, with the gap below."""
    return BAR * sum(bool(row.samples) for row in section.rows) + GAP


def _spread(sections: Sequence[Section]) -> list[list[Section]]:
    """Into columns of about the same height, in order."""
    share = sum(map(_height, sections)) / COLUMNS
    columns: list[list[Section]] = [[] for _ in range(COLUMNS)]
    above = 0.0
    for section in sections:
        middle = above + _height(section) / 2
        columns[min(int(middle / share), COLUMNS - 1)].append(section)
        above += _height(section)
    return columns


def _panel(axes: Axes, section: Section) -> None:
    rows = [row for row in section.rows if row.samples]
    medians = [row.median for row in rows]
    widest = max(max(medians), max(min(row.p99, 4 * max(medians)) for row in rows)) or 1.0
    places = range(len(rows))
    axes.barh(places, medians, height=0.68, color=[COLOURS[row.kind] for row in rows])
    for place, row in zip(places, rows, strict=True):
        if len(row.samples) > 1:
            axes.plot([row.median, min(row.p99, widest)], [place, place], color="#555555", lw=0.8)
        ratio = section.ratio(row)
        label = number(row.median) + ("" if ratio is None else f"   {number(ratio.value)} ×")
        beyond = max(row.median, min(row.p99, widest) if len(row.samples) > 1 else 0)
        axes.text(beyond + widest * 0.01, place, label, va="center", fontsize=8)
    axes.set_yticks(list(places), [row.name for row in rows], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, widest * 1.18)
    better = "more is better" if section.higher else "less is better"
    axes.set_title(f"{section.title} ({section.unit}; {better})", fontsize=9, loc="left", pad=4)
    axes.tick_params(axis="x", labelsize=7, colors="#777777")
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color("#cccccc")


def _legend(figure: Figure, y: float) -> None:
    for index, (kind, text) in enumerate(LEGEND.items()):
        x = 0.27 + 0.07 * index
        figure.text(x, y, "■", color=COLOURS[kind], fontsize=12, va="center")
        figure.text(x + 0.012, y, text, fontsize=8, va="center", color="#333333")
    meaning = (
        "×: how much worse than the bar that has none (below 1: better). Bars: medians; whiskers: to p99"
    )
    figure.text(0.56, y, meaning, fontsize=8, va="center", color="#333333")


def _footnote(facts: Mapping[str, Any]) -> str:
    machine, load = facts["machine"], facts["load_before"]["load_1m"]
    versions = machine["versions"]
    tools = "; ".join(versions[name] for name in ("runsc", "crun", "bwrap"))
    return (
        f"{machine['cpus']} × {machine['cpu']}{' (a virtual machine)' if machine['hypervisor'] else ''}, "
        f"kernel {machine['kernel']}, load {load:.1f} at the start; {tools}; "
        f"e2b {versions['e2b']}; {facts['when']}"
    )
