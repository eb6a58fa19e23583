"""256 MB up and down through the files API."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Sequence

from e2b import Sandbox

from bench.lab import Lab, Pools
from bench.measure import Contender, Kind, Section, take_turns

MEGABYTES = 256
SUBJECT = "Wardian, SDK files"
PATH = "/home/user/big"


def run(lab: Lab) -> Sequence[Section]:
    rounds = lab.rounds(quick=2, full=10)
    content = os.urandom(MEGABYTES << 20)
    digest = hashlib.sha256(content).digest()
    sandbox = lab.server(Pools(hot=2)).endpoint.create()
    plain = lab.plain().create()
    try:
        sections = []
        for name, title, way in (
            ("upload", f"Upload of {MEGABYTES} MB", lambda box: _upload(box, content)),
            ("download", f"Download of {MEGABYTES} MB", lambda box: _download(box, digest)),
        ):
            field = [
                Contender(SUBJECT, _on(way, sandbox), Kind.WARDIAN),
                Contender("same SDK, plain HTTP server", _on(way, plain)),
            ]
            with lab.progress(name, rounds) as tick:
                rows = take_turns(field, rounds=rounds, tick=tick, warm_up=0)
            sections.append(Section(name, title, "MB/s", SUBJECT, rows, higher=True))
    finally:
        sandbox.kill()
    return sections


def _on(way: Callable[[Sandbox], float], box: Sandbox) -> Callable[[], float]:
    return lambda: way(box)


def _upload(box: Sandbox, content: bytes) -> float:
    started = time.perf_counter()
    box.files.write(PATH, content, use_octet_stream=True)
    return MEGABYTES / (time.perf_counter() - started)


def _download(box: Sandbox, digest: bytes) -> float:
    started = time.perf_counter()
    got = box.files.read(PATH, format="bytes")
    spent = time.perf_counter() - started
    if hashlib.sha256(got).digest() != digest:
        raise RuntimeError("what came back is not what was sent")
    return MEGABYTES / spent
