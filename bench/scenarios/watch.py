"""How long news takes from the inside: a file is made, and the SDK's watch hears of it.

Who makes the file puts the time of its own clock into the name; what that clock is ahead of ours is found
beforehand, from answers that came back quickest.
"""

from __future__ import annotations

import asyncio
import queue
import subprocess
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import ExitStack
from typing import IO, Any, TypeVar

from e2b import AsyncSandbox

from bench.clients import TIMEOUT_S, Endpoint
from bench.lab import Lab, Pools
from bench.measure import Contender, Kind, Section, take_turns

SUBJECT = "Wardian, SDK watch_dir"
PATIENCE_S = 20
PINGS = 200
WHERE = "/tmp/watched"
INSIDE = f"""
import os, sys, time
os.makedirs("{WHERE}", exist_ok=True)
for line in sys.stdin:
    now = time.time_ns()
    if line == "make\\n":
        os.close(os.open(f"{WHERE}/{{now}}", os.O_CREAT))
    else:
        print(now, flush=True)
"""
"""Does what it is told, line by line: make a file, or say the time."""

T = TypeVar("T")


def run(lab: Lab) -> Sequence[Section]:
    rounds = lab.rounds(quick=50, full=1000)
    with ExitStack() as stack:
        ours = _Ours(lab.server(Pools(hot=2)).endpoint)
        stack.callback(ours.close)
        runsc = lab.peers().runsc
        raw = _Raw(runsc.inside(stack.enter_context(runsc.idle()), "python3", "-c", INSIDE))
        stack.callback(raw.close)
        field = [
            Contender(SUBJECT, _news(ours.make, ours.made, ours.ahead_ns), Kind.WARDIAN),
            Contender(
                "Wardian, SDK, a line of output", _news(ours.say, ours.said, ours.ahead_ns), Kind.WARDIAN
            ),
            Contender("runsc exec, a line of output", _news(raw.say, raw.said, raw.ahead_ns)),
        ]
        with lab.progress("watch", rounds + 1) as tick:
            rows = take_turns(field, rounds=rounds, tick=tick)
    notes = (
        "From the system call inside to the callback outside. A line of output: the same way, no watch.",
    )
    return [Section("watch", "News from the inside", "ms", SUBJECT, rows, notes=notes)]


Heard = tuple[int, int]
"""Two times: what the inside said (ns, its clock), and when it was heard (ns, ours)."""


def _news(act: Callable[[], None], heard: queue.Queue[Heard], ahead_ns: int) -> Callable[[], float]:
    def once() -> float:
        act()
        said, at = heard.get(timeout=PATIENCE_S)
        return (at - (said - ahead_ns)) / 1e6

    return once


def _clock_ahead(say: Callable[[], None], heard: queue.Queue[Heard]) -> int:
    """What the inside's clock is ahead of ours, in ns: as in NTP, from the quickest of many answers."""
    found = []
    for _ in range(PINGS):
        asked = time.time_ns()
        say()
        said, at = heard.get(timeout=PATIENCE_S)
        found.append((at - asked, said - (asked + at) // 2))
    return min(found)[1]


class _Ours:
    """A sandbox with the program inside and a watch, driven from a loop in a thread of its own."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.made: queue.Queue[Heard] = queue.Queue()
        self.said: queue.Queue[Heard] = queue.Queue()
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        self._do(self._open(endpoint))
        self.ahead_ns = _clock_ahead(self.say, self.said)

    def make(self) -> None:
        self._do(self._sandbox.commands.send_stdin(self._pid, "make\n"))

    def say(self) -> None:
        self._do(self._sandbox.commands.send_stdin(self._pid, "say\n"))

    def close(self) -> None:
        self._do(self._sandbox.kill())
        self._loop.call_soon_threadsafe(self._loop.stop)

    async def _open(self, endpoint: Endpoint) -> None:
        options: Any = endpoint.options
        self._sandbox = await AsyncSandbox.create(timeout=TIMEOUT_S, **options)
        await self._sandbox.files.write("/tmp/inside.py", INSIDE)
        await self._sandbox.files.make_dir(WHERE)
        command = await self._sandbox.commands.run(
            "python3 /tmp/inside.py", background=True, stdin=True, timeout=0, on_stdout=self._on_line
        )
        self._pid = command.pid
        await self._sandbox.files.watch_dir(WHERE, on_event=self._on_event, timeout=0)

    def _on_line(self, text: str) -> None:
        self.said.put((int(text), time.time_ns()))

    def _on_event(self, event: Any) -> None:
        if event.type.value == "create":
            self.made.put((int(event.name), time.time_ns()))

    def _do(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(PATIENCE_S)


class _Raw:
    """The program inside a container of runsc's, on two pipes."""

    def __init__(self, command: Sequence[str]) -> None:
        self.said: queue.Queue[Heard] = queue.Queue()
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._stdin = self._process.stdin
        self._reader = threading.Thread(target=self._read, args=(self._process.stdout,), daemon=True)
        self._reader.start()
        self.ahead_ns = _clock_ahead(self.say, self.said)

    def say(self) -> None:
        self._stdin.write(b"say\n")
        self._stdin.flush()

    def close(self) -> None:
        self._stdin.close()
        self._process.wait()
        self._reader.join()

    def _read(self, lines: IO[bytes]) -> None:
        with lines:
            for line in lines:
                self.said.put((int(line), time.time_ns()))
