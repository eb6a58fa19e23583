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
LEGEND = {Kind.WARDIAN: "Wardian", Kind.PEER: "peer", Kind.FLOOR: "floor (no sandbox behind it)"}
BAR, GAP = 0.30, 0.95  # inches


def draw(path: Path, sections: Sequence[Section], facts: Mapping[str, Any]) -> None:
    """Write the picture, SVG or PNG by ``path``'s suffix. Bars are medians, whiskers reach to p99."""
    drawn = [section for section in sections if any(row.samples for row in section.rows)]
    heights = [BAR * sum(bool(row.samples) for row in section.rows) + GAP for section in drawn]
    mpl.rcParams.update({"font.family": "DejaVu Sans", "svg.fonttype": "path", "svg.hashsalt": "bench"})
    total = sum(heights) + 0.9
    figure = Figure(figsize=(10, total), dpi=110, facecolor="white")
    at = total - 0.55
    for section, height in zip(drawn, heights, strict=True):
        bars = height - GAP
        axes = figure.add_axes((0.29, (at - bars - 0.35) / total, 0.62, bars / total))
        _panel(axes, section)
        at -= height
    figure.text(0.02, 1 - 0.28 / total, "Wardian, side by side", fontsize=14, fontweight="bold", va="center")
    figure.text(0.02, 0.14 / total, _footnote(facts), fontsize=7.5, color="#666666", va="center")
    _legend(figure, 1 - 0.28 / total)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


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
    axes.set_title(
        f"{section.title} ({section.unit}; {better}; × against {section.subject})",
        fontsize=9,
        loc="left",
        pad=4,
    )
    axes.tick_params(axis="x", labelsize=7, colors="#777777")
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color("#cccccc")


def _legend(figure: Figure, y: float) -> None:
    for index, (kind, text) in enumerate(LEGEND.items()):
        x = 0.45 + 0.13 * index
        figure.text(x, y, "■", color=COLOURS[kind], fontsize=12, va="center")
        figure.text(x + 0.018, y, text, fontsize=8, va="center", color="#333333")


def _footnote(facts: Mapping[str, Any]) -> str:
    machine = facts["machine"]
    versions = machine["versions"]
    return (
        f"{machine['cpus']} × {machine['cpu']}, kernel {machine['kernel']}, "
        f"{'KVM' if machine['kvm'] else 'no hardware virtualisation'}; {versions['runsc']}; "
        f"{versions['crun']}; {versions['bwrap']}; e2b {versions['e2b']}. Bars: medians; whiskers: "
        f"to p99. {facts['when']}"
    )
