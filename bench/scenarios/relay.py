"""What the way out costs in throughput: one large download by a program in a sandbox, which the host decides
on and relays, beside the same program without a sandbox."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from bench.lab import REPOSITORY, Lab, Pools
from bench.measure import Contender, Kind, Section, take_turns
from bench.server import Server

ADDRESS = "198.51.100.40"  # for documentation: nobody else is there
MEGABYTES = 128
SUBJECT = "Wardian, curl in a sandbox"


def run(lab: Lab) -> Sequence[Section]:
    with _upstream() as port:
        url = f"http://{ADDRESS}:{port}/{MEGABYTES << 20}"
        command = f"curl -sS --noproxy '*' -o /dev/null -w '%{{speed_download}}' {url}"
        os.environ["WARDIAN_ALLOWED_NETWORKS"] = f"{ADDRESS}/32"
        server = Server(lab.scratch / "relay", Pools(hot=1))
        try:
            with server.endpoint.create() as sandbox:
                field = [
                    Contender(
                        SUBJECT,
                        lambda: _rate(sandbox.commands.run(command, timeout=300).stdout),
                        Kind.WARDIAN,
                    ),
                    Contender("curl on the host", lambda: _rate(_on_the_host(command)), Kind.FLOOR),
                ]
                rounds = lab.rounds(quick=3, full=10)
                with lab.progress("relay", rounds) as tick:
                    rows = take_turns(field, rounds=rounds, tick=tick)
        finally:
            del os.environ["WARDIAN_ALLOWED_NETWORKS"]
            server.close()
    title = f"Download of {MEGABYTES} MB over HTTP, from a server on the host"
    return [Section("relay", title, "MB/s", SUBJECT, rows, higher=True)]


@contextmanager
def _upstream() -> Iterator[int]:
    """A server at an address of its own, without TLS; its port."""
    there = f"{ADDRESS}/32"
    subprocess.run(["ip", "address", "add", there, "dev", "lo"], check=True)
    try:
        process = subprocess.Popen(
            (sys.executable, "-m", "bench.upstream", "-", ADDRESS),
            stdout=subprocess.PIPE,
            text=True,
            cwd=REPOSITORY,
        )
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline())
        finally:
            process.terminate()
            process.wait()
            process.stdout.close()
    finally:
        subprocess.run(["ip", "address", "del", there, "dev", "lo"], check=True)


def _on_the_host(command: str) -> str:
    return subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True).stdout


def _rate(said: str) -> float:
    """Bytes a second, as curl says it, in MB/s."""
    return float(said) / 1e6
