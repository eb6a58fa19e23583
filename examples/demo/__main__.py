"""Run the demo, and search the host for what may be left of it.

A server with an empty data directory is started on a free port and driven with the official, unmodified
`e2b` SDK. An agent is deployed, which a clock begins; sandboxes are created, used, paused. In the middle of
all that the server is killed with -9. Another one is started, and everything goes on: the same process in the
sandbox, the same run. At the end a runner is released twice. With `--at-once` nobody waits for the clock.
"""

# ruff: noqa: T201 - it prints, that is what it is for

from __future__ import annotations

import shutil
import signal
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from e2b import Sandbox
from examples.demo import analyst, runner, sandboxes
from examples.demo.checks import DemoFailed
from examples.demo.leftovers import groups_of, leftovers
from examples.demo.server import ROOT, Server
from examples.demo.show import Show
from examples.scripted_model import ScriptedModel
from rich.console import Console


def main() -> int:
    """Run the demo. The exit status is 0 only if everything was as promised."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 110)
    scratch = ROOT / ".wardian"
    scratch.mkdir(exist_ok=True)
    data = Path(tempfile.mkdtemp(prefix="demo-", dir=scratch))
    servers: list[Server] = []
    groups: set[str] = set()
    show = Show(console)
    console.print("\n[bold]Wardian[/bold]: one server, the official e2b SDK, and a model that is played\n")
    try:
        with show.running(), ScriptedModel() as model:
            story(show, data, servers, groups, model, at_once="--at-once" in sys.argv[1:])
        left = leftovers(data, groups)
        if left:
            raise DemoFailed("something is left behind:\n  " + "\n  ".join(left))
        print("\nStopped. No process, control group, mount or machine file of this demo is left.")
    except (DemoFailed, KeyboardInterrupt) as problem:
        console.print(f"\n[red]the demo failed:[/red] {str(problem) or 'interrupted'}", soft_wrap=True)
        clean_up(servers, data)
        console.print(f"the server's log: {data / 'server.log'}", soft_wrap=True)
        return 1
    shutil.rmtree(data)
    return 0


def story(
    show: Show, data: Path, servers: list[Server], groups: set[str], model: ScriptedModel, *, at_once: bool
) -> None:
    """The steps, in order. Servers and control groups are noted as they come."""

    def start() -> Server:
        servers.append(Server(data))
        return servers[-1]

    server = show.step("start the server", start, lambda s: f"at {s.url}, pid {s.pid}")
    agent = analyst.Scene.deploy(show, server, model, data, at_once=at_once)
    boxes = sandboxes.Scene.begin(show, server)
    boxes.use()
    boxes.pause()
    agent.begin(server, at_once=at_once)
    groups |= groups_of(data)
    show.step("kill -9 the server", lambda: server.stop(signal.SIGKILL), lambda _: "gone, without a word")
    server = show.step("start another", start, lambda s: f"at {s.url}, pid {s.pid}")
    boxes.resume(server)
    agent.end(server, data)
    boxes.fork(server)
    runner.Scene(show, server, data).play()
    show.step("stop the server", lambda: server.stop(signal.SIGTERM), lambda _: "in order")


def clean_up(servers: list[Server], data: Path) -> None:
    """After a failure: let a server end every run and kill every sandbox, then stop it."""
    with suppress(Exception):
        servers[-1].stop(signal.SIGKILL)
    with suppress(Exception):
        server = Server(data)
        for each in server.call("GET", "/wardian/triggers"):
            server.call("DELETE", f"/wardian/triggers/{each['triggerID']}")
        for run in server.call("GET", "/wardian/runs"):
            server.call("POST", f"/wardian/runs/{run['runID']}/cancel")
        for sandbox in Sandbox.list(api_url=server.url, api_key=server.key).next_items():
            Sandbox.kill(sandbox.sandbox_id, **server.options)
        server.stop(signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
