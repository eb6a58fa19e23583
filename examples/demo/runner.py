"""The part of the demo with a runner that is released twice, beside an environment that stays as it is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from e2b import Sandbox
from examples.demo.checks import expect, wait_until
from examples.demo.server import Server
from examples.demo.show import Show

MANIFEST = """
version = "{version}"
language = "python"
start = ["main.py"]
self_test = ["main.py", "--self-test"]
imports = ["harness"]
"""
HARNESS = 'VERSION = "{version}"\n'
MAIN = """
import sys

import harness

if "--self-test" not in sys.argv:
    from wardian_run import run

    run.result({"runner": harness.VERSION})
"""
ENDED = ("succeeded", "failed", "cancelled")


@dataclass
class Scene:
    """Its steps, in order."""

    show: Show
    server: Server
    data: Path

    def play(self) -> None:
        first = self._release("1.0")
        freeze = ("agent", "freeze", "harnessed", "--from", "base", "--runner", "harness")
        frozen = self.server.wardian(*freeze)["versions"][0]["environment"]
        self.show.step("run it", self._run, lambda told: f"by runner {told['result']['runner']}")
        box = Sandbox.create(timeout=300, **self.server.options)
        try:
            self._swap(box.sandbox_id)
            self._release("2.0")
            self.show.step("run it again", self._run, lambda told: self._same(told, frozen))
            self.show.step("swap it in a running sandbox", lambda: self._swap(box.sandbox_id), self._swapped)
        finally:
            box.kill()
        back = ("runner", "use", "harness", first)
        self.show.step("go back", lambda: self.server.wardian(*back), lambda _: "to 1.0, by a pointer")
        told = self._run()
        expect(told["result"] == {"runner": "1.0"}, f"the run was by {told['result']}")

    def _release(self, version: str) -> str:
        directory = self.data / f"runner-{version}"
        directory.mkdir()
        (directory / "runner.toml").write_text(MANIFEST.format(version=version))
        (directory / "harness.py").write_text(HARNESS.format(version=version))
        (directory / "main.py").write_text(MAIN)
        words = ("runner", "release", str(directory), "--name", "harness")
        told = self.show.step(
            f"release runner {version}",
            lambda: self.server.wardian(*words),
            lambda told: told["current"][:16],
        )
        return str(told["current"])

    def _run(self) -> Any:
        run = self.server.call("POST", "/wardian/runs", {"agent": "harnessed"})["runID"]

        def ended() -> bool:
            return bool(self.server.call("GET", f"/wardian/runs/{run}")["state"] in ENDED)

        wait_until(ended, "the run to end")
        told = self.server.call("GET", f"/wardian/runs/{run}")
        expect(told["state"] == "succeeded", f"the run {told['state']}: {told['failure']}")
        return told

    def _same(self, told: Any, frozen: str) -> str:
        expect(told["result"] == {"runner": "2.0"}, f"the run was by {told['result']}")
        now = self.server.call("GET", "/wardian/agents/harnessed")["versions"]
        expect([each["environment"] for each in now] == [frozen], "the environment is another one")
        return "by runner 2.0, in the same frozen environment"

    def _swap(self, sandbox: str) -> Any:
        return self.server.call("POST", f"/wardian/sandboxes/{sandbox}/runner", {"runner": "harness"})

    def _swapped(self, told: Any) -> str:
        expect(told["state"] == "switched", f"the swap {told['state']}")
        return "2.0: checked, tested inside, and switched"
