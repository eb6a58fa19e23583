"""An agent that works with a model: deployed, begun by a clock, its server killed during an answer."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from examples.demo.checks import expect, wait_until
from examples.demo.server import ROOT, Server
from examples.demo.show import Show
from examples.scripted_model import KEY, Hold, ScriptedModel

CSV = "month,sales\nJan,10\nFeb,20\nMar,30\n"
INPUT = json.dumps({"question": "How are sales?", "csv": CSV})
ENTRY = "exec python3 /opt/analyst/agent.py"
ENDED = ("succeeded", "failed", "cancelled")


@dataclass
class Scene:
    """Its steps, in order; between :meth:`begin` and :meth:`end` the server dies."""

    show: Show
    model: ScriptedModel
    hold: Hold
    schedule: str
    run: str = ""

    @classmethod
    def deploy(cls, show: Show, server: Server, model: ScriptedModel, data: Path, *, at_once: bool) -> Scene:
        """What runs every minute from then on, unless it is begun at once. The model will stop in the middle
        of its second answer."""
        show.step(
            "grant a key",
            lambda: grant(server, model),
            lambda _: "to a model and a team's board; no sandbox will have it",
        )
        # A lock is written beside what is built.
        example = shutil.copytree(ROOT / "examples/analyst", data / "example")
        show.step(
            "build an agent's template",
            lambda: server.wardian("template", "build", str(example), "--name", "analyst"),
            lambda _: "Debian's Python and four files",
        )
        freeze = ("agent", "freeze", "analyst", "--from", "analyst", "--entry", ENTRY)
        show.step(
            "freeze the agent", lambda: server.wardian(*freeze), lambda told: f"version {told['version']}"
        )
        hold = model.hold("turn 2")
        when = "0 0 1 1 *" if at_once else "* * * * *"
        schedule = ("agent", "schedule", "analyst", when, "--overlap", "skip", "--input", INPUT)
        told = show.step("set a clock for it", lambda: server.wardian(*schedule), lambda _: when)
        return cls(show, model, hold, told["triggerID"])

    def begin(self, server: Server, *, at_once: bool) -> None:
        """Until the clock has begun a run, or we have, and the model has said half of its second answer."""

        def reached() -> str:
            if at_once:
                server.wardian("run", "start", "analyst", "--input", INPUT, "--detach")
            wait_until(self.hold.reached.is_set, "a run in the middle of an answer")
            server.wardian("agent", "triggers", "--rm", self.schedule)
            run = server.wardian("run", "ls", "--agent", "analyst")[-1]
            self.run = run["runID"]
            return f"{self.run}, by {run['trigger']['kind']}: the model is in the middle of an answer"

        self.show.step("begin a run" if at_once else "wait for the clock", reached, str)

    def end(self, server: Server, data: Path) -> None:
        """As if nothing had happened."""
        self.hold.go.set()
        told = self.show.step("the run goes on", lambda: self._wait(server), self._seen)
        expect(told["state"] == "succeeded", f"the run {told['state']}: {told['failure']}")
        self.show.step("what was done outside", lambda: dict(self.model.done), self._effects)
        self.show.step(
            "fetch its files",
            lambda: server.wardian("run", "files", self.run, "--to", str(data / "got")),
            lambda files: ", ".join(f"{each['name']} ({each['size']} bytes)" for each in files),
        )
        expect("<svg" in (data / "got/chart.svg").read_text(), "the chart is none")

    def _wait(self, server: Server) -> Any:
        def ended() -> bool:
            return bool(server.call("GET", f"/wardian/runs/{self.run}")["state"] in ENDED)

        wait_until(ended, "the run to end")
        return server.call("GET", f"/wardian/runs/{self.run}")

    def _seen(self, told: Any) -> str:
        numbers = [step["number"] for step in told["steps"]]
        expect(numbers == list(range(1, len(numbers) + 1)), f"steps were committed as {numbers}")
        expect(told["epoch"] == 1, "the run's machine did not outlive the server")
        return f"{told['state']}: {len(numbers)} steps, each committed once, in the machine it began in"

    def _effects(self, done: dict[str, int]) -> str:
        expect(set(done.values()) == {1} and len(done) == 4, f"done outside: {done}")
        expect(self.model.strangers == 0, "somebody asked without the key")
        asked = sum(self.model.asked.values())
        return f"3 answers of the model and 1 headline, once each, in {asked} requests"


def grant(server: Server, model: ScriptedModel) -> None:
    server.call("POST", "/secrets", {"name": "model-key", "value": KEY})
    for name, more in (("openai", {"preset": "openai", "inDoubt": "safe"}), ("board", {"inDoubt": "keyed"})):
        there: dict[str, Any] = {"host": "localhost", "port": model.port, "tls": False, "intercept": False}
        how: dict[str, Any] = {"secret": "model-key", "injector": {"kind": "bearer"}, **more}
        server.call("POST", "/wardian/grants", {"name": name, **there, **how})
