"""A Wardian server of our own, started as a user would, with the pools a scenario wants."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from bench.clients import Endpoint

STARTING_S = 180.0
SETTLING_S = 20.0
QUIET_S = 0.15
IDLE_S = 90.0


@dataclass(frozen=True, slots=True)
class Pools:
    """How many machines wait: hot ones (a template inside, frozen) and created ones (empty)."""

    hot: int = 0
    created: int = 0


class Server:
    """One ``wardian serve`` with its data in a directory of its own."""

    def __init__(self, data: Path, pools: Pools, *options: str) -> None:
        data.mkdir(parents=True, exist_ok=True)
        self.data = data
        self._pools, self._options = pools, options
        self.start()
        self.settle()

    def start(self) -> None:
        """Have it serve, anew after a :meth:`crash`."""
        self._log = (self.data / "serve.log").open("ab")
        pools = {"WARDIAN_POOL_HOT": str(self._pools.hot), "WARDIAN_POOL_CREATED": str(self._pools.created)}
        wardian = str(Path(sys.executable).with_name("wardian"))
        self._process = subprocess.Popen(
            (wardian, "serve", "--port", "0", "--data", str(self.data), "--json", *self._options),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env={**os.environ, **pools},
        )
        self.endpoint = self._greeting()

    def crash(self) -> None:
        """Kill it, in the middle of whatever it does."""
        self._process.kill()
        self._ended()

    def _ended(self) -> None:
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._log.close()

    def _greeting(self) -> Endpoint:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            raise RuntimeError(f"wardian serve did not start; see {self.data}/serve.log")
        self.facts: Mapping[str, str] = json.loads(line)
        return Endpoint(url=self.facts["url"], key=self.facts["key"])

    def settle(self, *, idle: bool = False) -> None:
        """Return when the server has nothing left to do in the background (its pool is full again).

        With ``idle``, also wait until its machines use no more processor time than the clock shows.
        """
        deadline = time.monotonic() + (IDLE_S if idle else SETTLING_S)
        seen, since = self._doing(idle), time.monotonic()
        quiet_s = 25 * QUIET_S if idle else QUIET_S
        while time.monotonic() < deadline and time.monotonic() - since < quiet_s:
            time.sleep(QUIET_S / 4)
            if (doing := self._doing(idle)) != seen:
                seen, since = doing, time.monotonic()

    def machines(self) -> Mapping[str, list[int]]:
        """The host processes of every machine there is, by machine."""
        names = {path.name for path in self.data.rglob("machines/*")}
        found: dict[str, list[int]] = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with suppress(OSError):
                    groups = (entry / "cgroup").read_text().split("/")
                    for name in names.intersection(word.split("\n")[0] for word in groups):
                        found.setdefault(name, []).append(int(entry.name))
        return found

    @property
    def pid(self) -> int:
        return self._process.pid

    def close(self) -> None:
        """Stop it. What it leaves behind is swept with the scratch directory."""
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._ended()

    def _doing(self, idle: bool) -> object:
        """Changes as long as something happens."""
        machines = sorted(path.name for path in self.data.rglob("machines/*"))
        pids = [self._process.pid]
        if idle:
            pids += [pid for machine in self.machines().values() for pid in machine]
        return machines, [_ticks(pid) for pid in pids]


def _ticks(pid: int) -> int:
    with suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])
    return 0
