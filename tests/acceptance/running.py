"""A server with agents and runs, as tests talk to it: over the API, as any program would."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from typing import TYPE_CHECKING, Any

import httpx
from tests.acceptance.commanding import wardian

if TYPE_CHECKING:
    from tests.acceptance.conftest import Server

PRELUDE = """
import json, os, subprocess, sys, time
from wardian_run import run, StepFailed
def note(text):
    with open("/home/user/log", "a") as file:
        file.write(text + "\\n")
def notes():
    return open("/home/user/log").read().split()
"""

ENDED = ("succeeded", "failed", "cancelled")


class House:
    """A server, its agents and runs."""

    def __init__(self, server: Server) -> None:
        self.enter(server)

    def enter(self, server: Server) -> None:
        """Talk to this server from now on."""
        self.server = server
        self.http = httpx.Client(
            base_url=server.url, headers={"X-API-KEY": server.key}, timeout=60, trust_env=False
        )

    def kill(self) -> None:
        """The server, at once."""
        self.http.close()
        self.server.process.kill()
        self.server.process.wait()
        if self.server.process.stdout is not None:
            self.server.process.stdout.close()

    def call(self, method: str, path: str, body: Any = None, **headers: str) -> httpx.Response:
        return self.http.request(method, "/wardian" + path, json=body, headers=headers)

    def cli(self, group: str, *arguments: str) -> str:
        """What a command of our command line prints; it must succeed."""
        said = wardian(group, "--data", str(self.server.data), *arguments)
        assert said.returncode == 0, said.stderr
        return said.stdout

    def freeze(self, name: str, program: str, **more: Any) -> Mapping[str, Any]:
        entry = f"python3 - <<'END'\n{PRELUDE}{program}\nEND\n"
        made = self.call("PUT", f"/agents/{name}", {"environment": "base", "entry": entry, **more})
        assert made.status_code == 200, made.text
        told: Mapping[str, Any] = made.json()
        return told

    def begin(self, agent: str, input: Any = None, **headers: str) -> str:
        begun = self.call("POST", "/runs", {"agent": agent, "input": input}, **headers)
        assert begun.status_code == 202, begun.text
        return str(begun.json()["runID"])

    def get(self, run: str) -> dict[str, Any]:
        told: dict[str, Any] = self.call("GET", f"/runs/{run}").json()
        return told

    def until(self, run: str, holds: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The run as soon as something holds of it. Its end ends the waiting, too."""
        while not holds(told := self.get(run)):
            assert told["state"] not in ENDED, told
            time.sleep(0.05)  # the API has no call that waits
        return told

    def end(self, run: str) -> dict[str, Any]:
        return self.until(run, lambda told: told["state"] in ENDED)

    def happened(self, run: str, event: str) -> bool:
        return event in [each["type"] for each in self.call("GET", f"/runs/{run}/events").json()]

    def files(self, sandbox: str) -> Callable[..., httpx.Response]:
        """Reads and writes files of the user's home: a method, a name, and what httpx takes."""
        made = self.http.post(f"/sandboxes/{sandbox}/connect", json={"timeout": 600}).json()
        headers = {
            "X-Access-Token": made["envdAccessToken"],
            "E2b-Sandbox-Id": sandbox,
            "E2b-Sandbox-Port": "49983",
        }

        def call(method: str, name: str, **more: Any) -> httpx.Response:
            where = {"path": f"/home/user/{name}", "username": "user"}
            answer = self.http.request(method, "/files", params=where, headers=headers, **more)
            assert answer.is_success, answer.text
            return answer

        return call

    def told(self, run: str) -> list[Any]:
        """What the program emitted."""
        events = self.call("GET", f"/runs/{run}/events").json()
        return [event["data"] for event in events if event["type"] == "run.emit"]

    def machine(self, run: str) -> Mapping[str, Any]:
        """The driver's record of the run's machine."""
        return self.machine_of(self.get(run)["sandboxID"])

    def machine_of(self, sandbox: str) -> Mapping[str, Any]:
        with closing(sqlite3.connect(self.server.data / "wardian.db")) as database:
            ((record,),) = database.execute("SELECT machine FROM sandbox WHERE id = ?", [sandbox])
        told: Mapping[str, Any] = json.loads(record)
        return told

    def metered(self, sandbox: str) -> list[dict[str, Any]]:
        """What a sandbox is billed for, but for how long."""
        columns = "DISTINCT kind, cpu_count, memory_mib, disk_mib"
        with closing(sqlite3.connect(self.server.data / "wardian.db")) as database:
            database.row_factory = sqlite3.Row
            query = f"SELECT {columns} FROM usage_interval WHERE sandbox_id = ? ORDER BY kind"
            return [dict(row) for row in database.execute(query, [sandbox])]

    def state_of(self, sandbox: str) -> str:
        told = self.http.get(f"/sandboxes/{sandbox}")
        return str(told.json()["state"]) if told.status_code == 200 else "gone"
