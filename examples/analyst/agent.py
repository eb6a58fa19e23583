"""An analyst: asks a model, does what it says, and hands over what came of it.

Every turn and every tool is a step. Whatever dies, the loop goes on behind the last one: the machine comes
back with this program in it, its variables and its files.
"""

from __future__ import annotations

import json
from typing import Any

from model import think
from tools import DESCRIBED, OUT, TOOLS, WORK
from wardian_run import run

TURNS_MAX, CALLS_MAX = 16, 8
SYSTEM = (
    "You are an analyst. The data is in data.csv, in the working directory of run_code. Compute with "
    "run_code, draw one chart with make_chart, publish one headline, then answer in a few sentences."
)


def main() -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    (WORK / "data.csv").write_text(run.input["csv"])
    messages: list[Any] = [
        {"role": "system", "content": SYSTEM},
        {"role": "user", "content": run.input["question"]},
    ]
    for turn in range(1, TURNS_MAX + 1):
        message = run.step(f"turn {turn}", lambda said: ask(f"turn {turn}", said), messages)  # noqa: B023
        messages.append(message)
        if not (calls := message.get("tool_calls", [])[:CALLS_MAX]):
            return hand_over(message["content"], turn)
        message["tool_calls"] = calls
        for number, call in enumerate(calls, 1):
            step = f"turn {turn}, {call['function']['name'][:64]} {number}"
            said = run.step(step, use, step, call["function"])
            messages.append({"role": "tool", "tool_call_id": call["id"], "content": said})
    raise SystemExit(f"no answer after {TURNS_MAX} turns")


def ask(step: str, messages: list[Any]) -> dict[str, Any]:
    return think(step, messages, DESCRIBED, lambda text: run.emit("says", text))


def use(step: str, function: dict[str, str]) -> str:
    """What a tool says. What the model got wrong is told to the model."""
    if (tool := TOOLS.get(function["name"])) is None:
        return f"refused: there is no tool {function['name']!r}"
    try:
        arguments = json.loads(function["arguments"])
        return tool(step, **arguments)
    except (ValueError, TypeError) as error:
        return f"refused: {error}"


def hand_over(answer: str, turns: int) -> None:
    (OUT / "report.md").write_text(f"# {run.input['question']}\n\n{answer}\n")
    files = [run.file(str(path)) for path in sorted(OUT.iterdir()) if path.is_file()]
    run.result({"answer": answer, "files": files, "turns": turns})


if __name__ == "__main__":
    main()
