"""Runs of a server, as scenarios see them: begun over the API, watched in the server's own tables."""

from __future__ import annotations

import os
import signal
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from typing import Any

import httpx

from bench.server import Server

PATIENCE_S = 300.0
LOOK_S = 0.002
PRELUDE = "import time\nfrom wardian_run import run\n"


class Agents:
    """Of one server; another one may take its place, on the same data."""

    def __init__(self, server: Server) -> None:
        self.server = server

    def freeze(self, name: str, program: str, **more: Any) -> None:
        entry = f"exec python3 - <<'END'\n{PRELUDE}{program}\nEND\n"
        self._call("PUT", f"/agents/{name}", {"environment": "base", "entry": entry, "every": 0, **more})

    def begin(self, agent: str, input: Any = None) -> str:
        return str(self._call("POST", "/runs", {"agent": agent, "input": input})["runID"])

    def told(self, run: str) -> Any:
        return self._call("GET", f"/runs/{run}")

    def cancel(self, run: str) -> None:
        self._call("POST", f"/runs/{run}/cancel")

    def end(self, run: str) -> Any:
        """The run once it is over. Raises for one that failed."""
        self.until(run, lambda state, _: state in ("succeeded", "failed", "cancelled"))
        told = self.told(run)
        if told["state"] != "succeeded":
            raise RuntimeError(f"the run {told['state']}: {told['failure']}")
        return told

    def until(self, run: str, holds: Callable[[str, int], bool]) -> None:
        """Until something holds of a run's state and its number of commits: looked at without its server."""
        deadline = time.monotonic() + PATIENCE_S
        with closing(self._tables()) as tables:
            while not holds(*_one(tables, "SELECT state, committed FROM run WHERE id = ?", run)):
                if time.monotonic() > deadline:
                    raise RuntimeError(f"run {run} takes too long")
                time.sleep(LOOK_S)

    def committed(self, run: str) -> int:
        with closing(self._tables()) as tables:
            return int(_one(tables, "SELECT committed FROM run WHERE id = ?", run)[0])

    def kill_machine(self, run: str) -> None:
        query = (
            "SELECT json_extract(machine, '$.sentry.pid') FROM sandbox JOIN run ON sandbox.id = sandbox_id"
        )
        with closing(self._tables()) as tables:
            (pid,) = _one(tables, f"{query} WHERE run.id = ?", run)
        os.kill(int(pid), signal.SIGKILL)

    def _tables(self) -> sqlite3.Connection:
        return sqlite3.connect(f"file:{self.server.data / 'wardian.db'}?mode=ro", uri=True, timeout=30)

    def _call(self, method: str, path: str, body: Any = None) -> Any:
        headers, url = {"X-API-KEY": self.server.endpoint.key}, self.server.endpoint.url
        with httpx.Client(trust_env=False, timeout=PATIENCE_S, headers=headers) as client:
            answer = client.request(method, f"{url}/wardian{path}", json=body)
        answer.raise_for_status()
        return answer.json() if answer.content else None


def _one(tables: sqlite3.Connection, query: str, run: str) -> tuple[Any, ...]:
    found: tuple[Any, ...] = tables.execute(query, [run]).fetchone()
    return found
