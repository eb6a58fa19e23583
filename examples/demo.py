"""What Wardian does, shown: the job of `make demo`.

Starts a server with an empty data directory on a free port, and drives it with the official, unmodified `e2b`
SDK: create, run, write and read; then pause a sandbox, kill the server with -9, start another, and find the
same process still counting; then fork it three ways. At the end everything is stopped, and the host is
searched for what may be left.
"""

# ruff: noqa: T201 - it prints, that is what it is for

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from e2b import Sandbox
from rich import box
from rich.console import Console
from rich.live import Live
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
START_S = 60
STOP_S = 30

PRIMES = """
import math, platform
n = sum(all(k % d for d in range(2, math.isqrt(k) + 1)) for k in range(2, 20000))
print(f"{n} primes below 20000, on {platform.system()} {platform.release()}")
"""

COUNTER = """
import itertools, os, time
for number in itertools.count():
    with open("count.new", "w") as file:
        file.write(f"{os.getpid()} {number}")
    os.rename("count.new", "count")
    time.sleep(0.05)
"""


class DemoFailed(Exception):
    """Something did not do what it promises."""


class Server:
    """`wardian serve` in a process of its own."""

    def __init__(self, data: Path) -> None:
        self._data = data
        self._log = (data / "server.log").open("ab")
        self._process = subprocess.Popen(
            [str(ROOT / ".venv/bin/wardian"), "serve", "--port=0", f"--data={data}", "--json"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._log,
            start_new_session=True,  # Ctrl-C is for the demo, which then stops it in order
        )
        assert self._process.stdout is not None
        try:
            greeting = self._process.stdout.readline()
        except KeyboardInterrupt:
            self.stop(signal.SIGKILL)
            raise
        if not greeting:
            raise DemoFailed(f"the server did not start:\n{(data / 'server.log').read_text()}")
        said = json.loads(greeting)
        self.url, self.key, self.pid = said["url"], said["key"], self._process.pid

    @property
    def options(self) -> dict[str, Any]:
        """What points the SDK here, instead of environment variables."""
        return {"api_url": self.url, "sandbox_url": self.url, "api_key": self.key}

    def stop(self, signo: signal.Signals) -> None:
        """Send it a signal and wait for its end."""
        self._process.send_signal(signo)
        self._process.wait(timeout=STOP_S)
        self._log.close()


@dataclass(frozen=True)
class Count:
    """What the counting process says of itself."""

    pid: int
    number: int

    @classmethod
    def of(cls, sandbox: Sandbox) -> Count:
        """As of now."""
        pid, number = sandbox.files.read("count").split()
        return cls(int(pid), int(number))


class Show:
    """A table that grows by a row with each step."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.groups: set[str] = set()
        self.table = Table(box=box.SIMPLE_HEAVY, pad_edge=False)
        self.table.add_column("step", no_wrap=True)
        self.table.add_column("time", justify="right", no_wrap=True)
        self.table.add_column("what was seen")

    @contextmanager
    def running(self) -> Iterator[None]:
        """Draw the table as it grows on a terminal; once, at the end, elsewhere."""
        with Live(self.table, console=self.console, refresh_per_second=20):
            yield

    def watch(self, data: Path) -> None:
        """Note the control group of the machines that run in ``data``, to look for it at the end."""
        for process in processes_naming(data):
            with suppress(OSError):
                self.groups |= set(re.findall(r"/(wardian-[0-9a-f]+)", (process / "cgroup").read_text()))

    def step(self, name: str, act: Callable[[], Any], see: Callable[[Any], str]) -> Any:
        """Do one step, measure it, and tell what came of it."""
        started = time.perf_counter()
        result = act()
        elapsed_ms = (time.perf_counter() - started) * 1000
        self.table.add_row(name, f"{elapsed_ms:,.1f} ms", see(result))
        return result


def main() -> int:
    """Run the demo. The exit status is 0 only if everything was as promised."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 110)
    scratch = ROOT / ".wardian"
    scratch.mkdir(exist_ok=True)
    data = Path(tempfile.mkdtemp(prefix="demo-", dir=scratch))
    servers: list[Server] = []
    show = Show(console)
    console.print("\n[bold]Wardian[/bold]: one server, the official e2b SDK, nothing else\n")
    try:
        with show.running():
            story(show, data, servers)
        left = leftovers(data, show.groups)
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


def story(show: Show, data: Path, servers: list[Server]) -> None:
    """The steps, in order. Servers are noted in ``servers`` as they start."""

    def start() -> Server:
        servers.append(Server(data))
        return servers[-1]

    server = show.step("start the server", start, lambda s: f"at {s.url}, pid {s.pid}")
    options = server.options
    show.step("say hello to the SDK", lambda: listed(server), lambda n: f"{n} sandboxes yet")
    sandbox: Sandbox = show.step(
        "create a sandbox", lambda: Sandbox.create(timeout=600, **options), lambda s: s.sandbox_id
    )
    show.watch(data)
    second = show.step(
        "create a second one", lambda: Sandbox.create(timeout=600, **options), lambda s: s.sandbox_id
    )
    show.step(
        "run its first command", lambda: sandbox.commands.run("true"), lambda r: f"exit code {r.exit_code}"
    )
    sandbox.files.write("primes.py", PRIMES)
    show.step(
        "run some Python", lambda: sandbox.commands.run("python3 primes.py"), lambda r: r.stdout.strip()
    )
    text = "".join(f"{line}\n" for line in range(200_000))
    show.step(
        "write a file", lambda: sandbox.files.write("lines.txt", text), lambda _: f"{len(text):,} bytes"
    )
    back = show.step("read it back", lambda: sandbox.files.read("lines.txt"), lambda t: f"{len(t):,} bytes")
    expect(back == text, "the file came back changed")

    sandbox.files.write("counter.py", COUNTER)
    sandbox.commands.run("python3 counter.py", background=True, timeout=0)
    before = show.step("start a counter", lambda: first_count(sandbox), lambda c: f"process {c.pid} counts")
    wait_until(lambda: Count.of(sandbox).number >= 20, "the counter to reach 20")
    before = Count.of(sandbox)
    show.step(
        "pause", sandbox.pause, lambda _: f"process {before.pid} was at {before.number}; no machine runs now"
    )

    show.step("kill -9 the server", lambda: server.stop(signal.SIGKILL), lambda _: "gone, without a word")
    server = show.step("start another", start, lambda s: f"at {s.url}, pid {s.pid}")
    options = server.options
    sandbox = show.step(
        "resume",
        lambda: Sandbox.connect(sandbox.sandbox_id, timeout=600, **options),
        lambda s: resumed(s, before),
    )

    forks = show.step("fork it three ways", lambda: sandbox.fork(count=3, timeout=600), forked)
    for name, fork in zip("abc", forks, strict=True):
        fork.files.write("name", name)
    show.step(
        "let them diverge",
        lambda: [diverged(name, f) for name, f in zip("abc", forks, strict=True)],
        "\n".join,
    )
    expect(not sandbox.files.exists("name"), "a fork's file appeared in the original")

    everyone = [sandbox, Sandbox.connect(second.sandbox_id, **options), *forks]
    show.step("kill them all", lambda: [s.kill() for s in everyone], lambda done: f"{sum(done)} sandboxes")
    show.step("stop the server", lambda: server.stop(signal.SIGTERM), lambda _: "in order")


def first_count(sandbox: Sandbox) -> Count:
    """Wait for the counter's first number."""
    wait_until(lambda: sandbox.files.exists("count"), "the counter to start")
    return Count.of(sandbox)


def resumed(sandbox: Sandbox, before: Count) -> str:
    """The same process must go on from where it was."""
    after = Count.of(sandbox)
    expect(after.pid == before.pid, f"process {before.pid} became {after.pid}")
    expect(before.number <= after.number <= before.number + 100, f"{before.number} became {after.number}")
    wait_until(lambda: Count.of(sandbox).number > after.number, "the counter to go on")
    return f"the same process {after.pid} went on from {after.number}: now {Count.of(sandbox).number}"


def forked(forks: list[Any]) -> str:
    """Every fork must have worked."""
    for fork in forks:
        expect(isinstance(fork, Sandbox), f"a fork failed: {fork}")
    return ", ".join(fork.sandbox_id for fork in forks)


def diverged(name: str, fork: Sandbox) -> str:
    """Each fork has its own file, and its own run of the same process."""
    seen = fork.files.read("name")
    expect(seen == name, f"fork {name} has the file of {seen}")
    count = Count.of(fork)
    return f"fork {name}: process {count.pid} at {count.number}, its file says {seen!r}"


def expect(truth: bool, otherwise: str) -> None:
    """Fail the demo unless ``truth``."""
    if not truth:
        raise DemoFailed(otherwise)


def wait_until(reached: Callable[[], bool], what: str) -> None:
    """Ask the sandbox until it is so."""
    deadline = time.monotonic() + START_S
    while not reached():
        expect(time.monotonic() < deadline, f"waited {START_S} s for {what}")
        time.sleep(0.02)


def listed(server: Server) -> int:
    """How many sandboxes there are."""
    return len(Sandbox.list(api_url=server.url, api_key=server.key).next_items())


def processes_naming(data: Path) -> list[Path]:
    """Every process with ``data`` in its command line, but ourselves."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if str(data).encode() in (process / "cmdline").read_bytes() and int(process.name) != os.getpid():
                found.append(process)
    return found


def leftovers(data: Path, groups: set[str]) -> list[str]:
    """Whatever on this host still belongs to the servers that ran in ``data``."""
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    left = [f"process {process.name}" for process in processes_naming(data)]
    left += [f"machine {path.name}" for path in data.glob("*/machines/*")]
    left += [f"mount {line.split()[4]}" for line in mounts if str(data) in line]
    for group in groups:
        machines = (path for top in Path("/sys/fs/cgroup").glob(f"**/{group}") for path in top.glob("*/"))
        left += [f"control group {path}" for path in machines]
    return left


def clean_up(servers: list[Server], data: Path) -> None:
    """After a failure: let a server kill every sandbox, then stop it."""
    with suppress(Exception):
        servers[-1].stop(signal.SIGKILL)
    with suppress(Exception):
        server = Server(data)
        for sandbox in Sandbox.list(api_url=server.url, api_key=server.key).next_items():
            Sandbox.kill(sandbox.sandbox_id, **server.options)
        server.stop(signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
