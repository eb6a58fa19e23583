"""Raw DBOS in a process of its own: what a durable step costs where no machine is part of it.

``python -m bench.dbos_alone DATABASE BEAT``: says ``ready``, then for each line ``start`` how long the first
step of a new workflow took to begin, for ``steps N`` how long each of N steps took (JSON, milliseconds), and
for ``beat`` begins a workflow of endless steps, each of which notes its number in the file BEAT. That one
goes on by itself in the next process.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from pathlib import Path
from typing import Any

from dbos import DBOS

DATABASE, BEAT = sys.argv[1], Path(sys.argv[2])
BEAT_S = 0.02


@DBOS.step()
def first() -> float:
    return time.time()


@DBOS.step()
def nothing(number: int) -> int:
    return number


@DBOS.step()
def note(number: int) -> int:
    BEAT.write_text(str(number))
    time.sleep(BEAT_S)
    return number


@DBOS.workflow()
def begin() -> float:
    return first()


@DBOS.workflow()
def several(count: int) -> list[float]:
    spent = []
    for number in range(count):
        started = time.perf_counter()
        nothing(number)
        spent.append(1000 * (time.perf_counter() - started))
    return spent


@DBOS.workflow()
def endless() -> None:
    number = 0
    while True:
        number = note(number) + 1


def answer(words: list[str]) -> Any:
    if words[0] == "start":
        asked = time.time()
        return 1000 * (DBOS.start_workflow(begin).get_result() - asked)
    if words[0] == "steps":
        return several(int(words[1]))
    DBOS.start_workflow(endless)
    return None


def main() -> None:
    logging.disable(logging.CRITICAL)
    DBOS(config={"name": "bench", "system_database_url": DATABASE, "application_version": "1"})
    DBOS.launch()
    print(json.dumps("ready"), flush=True)  # noqa: T201
    for line in sys.stdin:
        print(json.dumps(answer(line.split())), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
