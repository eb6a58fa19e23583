"""A thousand small files up and down: by the SDK's calls, and as one archive by hand."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack

from e2b import Sandbox
from e2b.sandbox.filesystem.filesystem import WriteEntry

from bench.clients import elapsed
from bench.lab import Lab, Pools
from bench.measure import Contender, Kind, Section, take_turns
from bench.peers import Oci

COUNT, SIZE = 1000, 1024
WHERE = "/tmp/many"
UP, DOWN = "Wardian, SDK write_files", "Wardian, SDK read, one by one"
NOTES = (
    f"{COUNT:,} files of {SIZE:,} random bytes. By hand: one tar, into or out of `tar` run by `runsc exec`.",
)


def run(lab: Lab) -> Sequence[Section]:
    rounds = lab.rounds(quick=3, full=20)
    files = {f"{number:04}": os.urandom(SIZE) for number in range(COUNT)}
    with ExitStack() as stack:
        sandbox = lab.server(Pools(hot=2)).endpoint.create()
        stack.callback(sandbox.kill)
        runsc = lab.peers().runsc
        name = stack.enter_context(runsc.idle())
        ups = [
            Contender(UP, lambda: _write_all(sandbox, files), Kind.WARDIAN),
            Contender("Wardian, SDK write, one by one", lambda: _write_each(sandbox, files), Kind.WARDIAN),
            Contender("tar by runsc exec", lambda: _tar_in(runsc, name, files)),
        ]
        downs = [
            Contender(DOWN, lambda: _read_each(sandbox, files), Kind.WARDIAN),
            Contender("tar by runsc exec", lambda: _tar_out(runsc, name, files)),
        ]
        with lab.progress("1,000 small files", 2 * (rounds + 1)) as tick:
            up = take_turns(ups, rounds=rounds, tick=tick)
            down = take_turns(downs, rounds=rounds, tick=tick)
    return [
        Section("small-up", f"{COUNT:,} small files up", "ms", UP, up, notes=NOTES),
        Section("small-down", f"{COUNT:,} small files down", "ms", DOWN, down, notes=NOTES),
    ]


def _write_all(sandbox: Sandbox, files: Mapping[str, bytes]) -> float:
    entries = [WriteEntry(path=f"{WHERE}/{name}", data=data) for name, data in files.items()]
    started = time.perf_counter()
    sandbox.files.write_files(entries)
    return elapsed(started)


def _write_each(sandbox: Sandbox, files: Mapping[str, bytes]) -> float:
    started = time.perf_counter()
    for name, data in files.items():
        sandbox.files.write(f"{WHERE}/{name}", data)
    return elapsed(started)


def _read_each(sandbox: Sandbox, files: Mapping[str, bytes]) -> float:
    started = time.perf_counter()
    got = {name: bytes(sandbox.files.read(f"{WHERE}/{name}", format="bytes")) for name in files}
    return _checked(elapsed(started), got, files)


def _tar_in(runsc: Oci, name: str, files: Mapping[str, bytes]) -> float:
    started = time.perf_counter()
    unpack = runsc.inside(name, "/bin/sh", "-c", f"mkdir -p {WHERE} && tar -C {WHERE} -x")
    subprocess.run(unpack, input=_packed(files), check=True)
    return elapsed(started)


def _tar_out(runsc: Oci, name: str, files: Mapping[str, bytes]) -> float:
    started = time.perf_counter()
    pack = runsc.inside(name, "/bin/tar", "-C", WHERE, "-c", ".")
    done = subprocess.run(pack, stdin=subprocess.DEVNULL, capture_output=True, check=True)
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as tar:
        contents = {member.name[2:]: tar.extractfile(member) for member in tar if member.isreg()}
        got = {path: content.read() for path, content in contents.items() if content is not None}
    return _checked(elapsed(started), got, files)


def _packed(files: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def _checked(spent: float, got: Mapping[str, bytes], files: Mapping[str, bytes]) -> float:
    if got != files:
        raise RuntimeError("what came back is not what was sent")
    return spent
