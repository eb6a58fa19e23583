"""What the model may call. A tool takes its step's name and its arguments, and returns bounded text."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from outside import post

WORK = Path.home() / "work"
OUT = WORK / "out"
"""What is in here is handed over at the end."""

CODE_S, TEXT_MAX = 60, 8 * 1024
BARS_MAX = 100
WIDTH, HEIGHT, EDGE = 640, 360, 40


def run_code(step: str, code: str) -> str:
    """Run Python in the sandbox; the end of what it prints."""
    printed = WORK / "printed"
    with printed.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-c", code], cwd=WORK, stdin=subprocess.DEVNULL, stdout=file, stderr=file
        )
        try:
            end = f"exit code {process.wait(CODE_S)}"
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            end = f"killed after {CODE_S} s"
    with printed.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - TEXT_MAX))
        return f"{file.read(TEXT_MAX).decode(errors='replace')}[{end}]"


def make_chart(step: str, title: str, labels: list[str], values: list[float]) -> str:
    """Draw bars into an SVG file."""
    if not 1 <= len(labels) == len(values) <= BARS_MAX:
        return f"refused: as many labels as values, 1 to {BARS_MAX}"
    top = max(*map(abs, values), 1e-9)
    room = (WIDTH - 2 * EDGE) / len(values)
    drawn = [f'<text x="{WIDTH / 2}" y="24" text-anchor="middle" font-size="18">{escape(title)}</text>']
    for number, (label, value) in enumerate(zip(labels, values)):  # noqa: B905 - their number was checked
        high = (HEIGHT - 2 * EDGE) * abs(value) / top
        x, y = EDGE + room * number, HEIGHT - EDGE - high
        drawn.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{room * 0.8:.1f}" height="{high:.1f}" fill="#48c"/>'
        )
        drawn.append(f'<text x="{x:.1f}" y="{HEIGHT - 20}" font-size="12">{escape(str(label))}</text>')
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}">'
    (OUT / "chart.svg").write_text("\n".join([head, *drawn, "</svg>\n"]))
    return "drawn: chart.svg"


def publish(step: str, headline: str) -> str:
    """Put a line on the team's board, which is somebody else's server: a step of ours is one line there."""
    url = os.environ["WARDIAN_BRIDGE_URL"] + "/board/posts"
    return post(url, step, {"headline": headline}, lambda answer: answer.read(TEXT_MAX).decode())


TOOLS: dict[str, Callable[..., str]] = {"run_code": run_code, "make_chart": make_chart, "publish": publish}


def _described(name: str, properties: dict[str, Any]) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties, "required": list(properties)}
    told = {"name": name, "description": TOOLS[name].__doc__, "parameters": parameters}
    return {"type": "function", "function": told}


_TEXT = {"type": "string"}
DESCRIBED = [
    _described("run_code", {"code": _TEXT}),
    _described(
        "make_chart",
        {
            "title": _TEXT,
            "labels": {"type": "array", "items": _TEXT},
            "values": {"type": "array", "items": {"type": "number"}},
        },
    ),
    _described("publish", {"headline": _TEXT}),
]
