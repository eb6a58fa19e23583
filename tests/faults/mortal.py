"""``wardian`` that kills at a boundary that a crash may fall on: ``WARDIAN_DIE_AT=NAME[:N]``, at the Nth time
it gets there. ``WARDIAN_VICTIM`` is the server itself, its bridge, or its sandboxes' machines."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from wardian.app import server
from wardian.runs.engines import workflows
from wardian.sandboxes.workshop import Workshop

NAME, _, NUMBER = os.environ["WARDIAN_DIE_AT"].partition(":")
seen: Counter[str] = Counter()


def checkpoint(name: str) -> None:
    seen[name] += 1
    if (name, seen[name]) == (NAME, int(NUMBER or 1)):
        for pid in VICTIMS[os.environ.get("WARDIAN_VICTIM", "server")]():
            os.kill(pid, signal.SIGKILL)


def machines() -> list[int]:
    """The processes that sandboxes run in, as the records have them."""
    data = next(word.removeprefix("--data=") for word in _words() if word.startswith("--data="))
    with closing(sqlite3.connect(f"file:{data}/wardian.db?mode=ro", uri=True)) as database:
        query = "SELECT machine FROM sandbox WHERE state != 'ended' AND machine IS NOT NULL"
        records = [json.loads(record) for (record,) in database.execute(query)]
    pids = [record["sentry"]["pid"] for record in records if record]
    return [pid for pid in pids if Path(f"/proc/{pid}").exists()]


def bridges() -> list[int]:
    named = ["pgrep", "-P", str(os.getpid()), "-f", "wardian.bridge.process"]
    return [int(pid) for pid in subprocess.run(named, capture_output=True, text=True).stdout.split()]


def _words() -> list[str]:
    """Of the command line, ``--data DIR`` as ``--data=DIR``."""
    words = " ".join(sys.argv).replace("--data ", "--data=")
    return words.split()


VICTIMS: dict[str, Callable[[], list[int]]] = {
    "server": lambda: [os.getpid()],
    "bridge": bridges,
    "machines": machines,
}


def mortal(**parts: Any) -> Workshop:
    return Workshop(**parts, checkpoint=checkpoint)


def passing(name: str, call: Callable[..., Any], *, after: bool) -> Callable[..., Any]:
    """A call that gets to a checkpoint, when it is made or when it is done."""

    def called(*arguments: Any) -> Any:
        if not after:
            checkpoint(name)
        result = call(*arguments)
        if after:
            checkpoint(name)
        return result

    return called


if __name__ == "__main__":
    workflows.put_aside = passing("engine.aside", workflows.put_aside, after=True)
    go_on = workflows.execute_dequeued_workflow  # type: ignore[attr-defined]
    workflows.execute_dequeued_workflow = passing("engine.woken", go_on, after=False)  # type: ignore[attr-defined]
    server.Workshop = mortal  # type: ignore[assignment,attr-defined]
    from wardian.cli.main import app

    app()
