"""What a key that is put in on the way out costs: the bridge beside mitmproxy, both before one upstream."""

from __future__ import annotations

import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from bench.bridged import HOST
from bench.lab import REPOSITORY, Lab
from bench.measure import Contender, Goal, Kind, Section, take_turns
from wardian.model.grant import BRIDGE_HOST
from wardian.vault import certificates

BASE, INTERCEPTED = "Wardian, base URL", "Wardian, intercepted"
MITM, MITM_TLS = "mitmproxy, plain inside", "mitmproxy, TLS inside"
DIRECT = "the upstream itself"
AT_ONCE, SECONDS, BATCH = 8, 1.5, 100
SMALL, LARGE = 1000, 1_000_000
PATIENCE_S = 30.0


@dataclass(frozen=True, slots=True)
class Way:
    """How a client gets to the upstream."""

    port: int
    host: str
    tls: bool
    prefix: str = ""

    def connect(self) -> Client:
        sock = socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE_S)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self.tls:
            sock = _TRUSTING.wrap_socket(sock, server_hostname=self.host)
        return Client(self, sock)


class Client:
    """One connection, used again and again: as little of a client as can be."""

    def __init__(self, way: Way, sock: socket.socket) -> None:
        self._way, self._sock = way, sock

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exception: object) -> None:
        self._sock.close()

    def get(self, size: int) -> None:
        self._ask(f"/{size}")
        data = self._sock.recv(1 << 16)
        while b"\r\n\r\n" not in data:
            data += self._more()
        head, _, body = data.partition(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(head.decode(errors="replace")[:200])
        left = size - len(body)
        while left > 0:
            left -= len(self._more())

    def first_event(self) -> None:
        self._ask("/events")
        data = b""
        while b"data: first" not in data:
            data += self._more()

    def _more(self) -> bytes:
        data = self._sock.recv(1 << 18)
        if not data:
            raise RuntimeError("the connection ended")
        return data

    def _ask(self, path: str) -> None:
        self._sock.sendall(
            f"GET {self._way.prefix}{path} HTTP/1.1\r\nHost: {self._way.host}\r\n\r\n".encode()
        )


def run(lab: Lab) -> Sequence[Section]:
    with ExitStack() as stack:
        ways = _ways(lab, stack)
        pool = stack.enter_context(ThreadPoolExecutor(AT_ONCE))
        return [
            _latency(lab, ways),
            _rates(lab, ways, pool, "bridge-rate", "Requests of 1 kB", "1/s", SMALL, 1.0),
            _rates(lab, ways, pool, "bridge-bulk", "Answers of 1 MB", "MB/s", LARGE, LARGE / 1e6),
            _events(lab, ways),
        ]


def _latency(lab: Lab, ways: dict[str, Way]) -> Section:
    title = f"One request of 1 kB on a connection that is open (median of {BATCH})"

    def measured(way: Way) -> Callable[[], float]:
        def once() -> float:
            times = []
            with way.connect() as client:
                client.get(SMALL)
                for _ in range(BATCH):
                    started = time.perf_counter()
                    client.get(SMALL)
                    times.append(time.perf_counter() - started)
            return sorted(times)[BATCH // 2] * 1e3

        return once

    section = _section(
        lab, "bridge-latency", title, "ms", {name: measured(way) for name, way in ways.items()}
    )
    direct, base = section.row(DIRECT), section.row(BASE)
    if direct is None or base is None:
        return section
    goal = Goal("added to a request by the bridge, median", 1.0, base.median - direct.median, "ms")
    return Section(section.name, section.title, section.unit, section.subject, section.rows, goals=(goal,))


def _rates(
    lab: Lab,
    ways: dict[str, Way],
    pool: ThreadPoolExecutor,
    name: str,
    title: str,
    unit: str,
    size: int,
    worth: float,
) -> Section:
    def measured(way: Way) -> Callable[[], float]:
        def client(end: float) -> int:
            count = 0
            with way.connect() as client:
                while time.perf_counter() < end:
                    client.get(size)
                    count += 1
            return count

        def once() -> float:
            started = time.perf_counter()
            counts = sum(pool.map(client, [started + SECONDS] * AT_ONCE))
            return counts * worth / (time.perf_counter() - started)

        return once

    title = f"{title} over {AT_ONCE} connections"
    return _section(lab, name, title, unit, {key: measured(way) for key, way in ways.items()}, higher=True)


def _events(lab: Lab, ways: dict[str, Way]) -> Section:
    def measured(way: Way) -> Callable[[], float]:
        def once() -> float:
            with way.connect() as client:
                client.get(SMALL)
                started = time.perf_counter()
                client.first_event()
                return (time.perf_counter() - started) * 1e3

        return once

    title = "The first of a stream of server-sent events"
    return _section(lab, "bridge-events", title, "ms", {name: measured(way) for name, way in ways.items()})


def _section(
    lab: Lab, name: str, title: str, unit: str, field: dict[str, Callable[[], float]], *, higher: bool = False
) -> Section:
    rounds = lab.rounds(quick=5, full=20)
    kinds = {BASE: Kind.WARDIAN, INTERCEPTED: Kind.WARDIAN, DIRECT: Kind.FLOOR}
    contenders = [Contender(key, once, kinds.get(key, Kind.PEER)) for key, once in field.items()]
    with lab.progress(name, rounds + 1) as tick:
        rows = take_turns(contenders, rounds=rounds, tick=tick)
    return Section(name, title, unit, BASE, rows, higher=higher)


# ── what is measured


def _ways(lab: Lab, stack: ExitStack) -> dict[str, Way]:
    """Everything started; without mitmproxy, by its absence."""
    place = lab.scratch / "bridge"
    place.mkdir()
    pair = certificates.self_signed([HOST])
    (place / "both.pem").write_bytes(pair.both)
    (place / "cert.pem").write_bytes(pair.pem)
    here = (sys.executable, "-m")
    upstream = int(_start(stack, *here, "bench.upstream", str(place / "both.pem")))
    told = _start(stack, *here, "bench.bridged", str(place), str(place / "cert.pem"), str(upstream))
    base, intercepted = json.loads(told)
    ways = {
        BASE: Way(base, BRIDGE_HOST, tls=False, prefix="/api"),
        INTERCEPTED: Way(intercepted, HOST, tls=True),
        DIRECT: Way(upstream, HOST, tls=True),
    }
    program = os.environ.get("MITMDUMP") or shutil.which("mitmdump")
    if program is not None:
        port = _mitmproxy(stack, program, place, upstream)
        ways |= {MITM: Way(port, HOST, tls=False), MITM_TLS: Way(port, HOST, tls=True)}
    return ways


def _start(stack: ExitStack, *command: str) -> str:
    """Start a program of ours; the line that it says once it serves."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY)
    _ending(stack, process)
    assert process.stdout is not None
    stack.callback(process.stdout.close)
    if not (line := process.stdout.readline()):
        raise RuntimeError(f"{command[2]} did not start")
    return line


def _mitmproxy(stack: ExitStack, program: str, place: Path, upstream: int) -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
    addon = Path(__file__).resolve().parent.parent / "mitm.py"
    options = ("-q", "--ssl-insecure", "--set", f"confdir={place}", "-s", str(addon))
    mode = f"reverse:https://127.0.0.1:{upstream}@127.0.0.1:{port}"
    process = subprocess.Popen((program, "--mode", mode, *options), stdout=subprocess.DEVNULL)
    _ending(stack, process)
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return port
        time.sleep(0.1)
    raise RuntimeError("mitmproxy did not start")


def _ending(stack: ExitStack, process: subprocess.Popen[str] | subprocess.Popen[bytes]) -> None:
    stack.callback(process.wait)
    stack.callback(process.terminate)


_TRUSTING = ssl.create_default_context()
_TRUSTING.check_hostname = False
_TRUSTING.verify_mode = ssl.CERT_NONE
