"""A sandbox: created, used, paused, resumed by another server, forked."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from e2b import Sandbox
from examples.demo.checks import expect, wait_until
from examples.demo.server import Server
from examples.demo.show import Show

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


@dataclass
class Scene:
    """Its steps, in order; between :meth:`pause` and :meth:`resume` the server may die."""

    show: Show
    sandbox: Sandbox
    second: Sandbox
    before: Count = field(default_factory=lambda: Count(0, 0))

    @classmethod
    def begin(cls, show: Show, server: Server) -> Scene:
        options = server.options
        show.step("say hello to the SDK", lambda: listed(server), lambda n: f"{n} sandboxes yet")

        def create() -> Sandbox:
            return Sandbox.create(timeout=600, **options)

        sandbox = show.step("create a sandbox", create, lambda s: s.sandbox_id)
        second = show.step("create a second one", create, lambda s: s.sandbox_id)
        return cls(show, sandbox, second)

    def use(self) -> None:
        show, sandbox = self.show, self.sandbox
        show.step(
            "run its first command",
            lambda: sandbox.commands.run("true"),
            lambda r: f"exit code {r.exit_code}",
        )
        sandbox.files.write("primes.py", PRIMES)
        show.step(
            "run some Python", lambda: sandbox.commands.run("python3 primes.py"), lambda r: r.stdout.strip()
        )
        text = "".join(f"{line}\n" for line in range(200_000))
        show.step(
            "write a file", lambda: sandbox.files.write("lines.txt", text), lambda _: f"{len(text):,} bytes"
        )
        back = show.step(
            "read it back", lambda: sandbox.files.read("lines.txt"), lambda t: f"{len(t):,} bytes"
        )
        expect(back == text, "the file came back changed")

    def pause(self) -> None:
        show, sandbox = self.show, self.sandbox
        sandbox.files.write("counter.py", COUNTER)
        sandbox.commands.run("python3 counter.py", background=True, timeout=0)
        show.step("start a counter", lambda: first_count(sandbox), lambda c: f"process {c.pid} counts")
        wait_until(lambda: Count.of(sandbox).number >= 20, "the counter to reach 20")
        self.before = before = Count.of(sandbox)
        show.step(
            "pause",
            sandbox.pause,
            lambda _: f"process {before.pid} was at {before.number}; no machine runs now",
        )

    def resume(self, server: Server) -> None:
        self.sandbox = self.show.step(
            "resume",
            lambda: Sandbox.connect(self.sandbox.sandbox_id, timeout=600, **server.options),
            lambda s: resumed(s, self.before),
        )

    def fork(self, server: Server) -> None:
        show, sandbox = self.show, self.sandbox
        forks = show.step("fork it three ways", lambda: sandbox.fork(count=3, timeout=600), forked)
        for name, fork in zip("abc", forks, strict=True):
            fork.files.write("name", name)
        show.step(
            "let them diverge",
            lambda: [diverged(name, f) for name, f in zip("abc", forks, strict=True)],
            "\n".join,
        )
        expect(not sandbox.files.exists("name"), "a fork's file appeared in the original")
        everyone = [sandbox, Sandbox.connect(self.second.sandbox_id, **server.options), *forks]
        show.step(
            "kill them all", lambda: [s.kill() for s in everyone], lambda done: f"{sum(done)} sandboxes"
        )


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


def listed(server: Server) -> int:
    """How many sandboxes there are."""
    return len(Sandbox.list(api_url=server.url, api_key=server.key).next_items())
