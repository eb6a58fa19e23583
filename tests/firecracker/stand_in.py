"""A stand-in for Firecracker and its jailer, for hosts that cannot run them: no guest, but the same manners.

Every request is checked against ``description``, and refused when the machine is not in the state for it. A
"guest" echoes packets on the vsock port of the link; while the machine is paused it does nothing; a capture
cuts its connections. Run as ``stand_in.py jailer …`` or ``stand_in.py firecracker …``; what it was asked is
in ``asked.jsonl`` in its jail.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from description import AFTER, ALWAYS, BEFORE, BODIES, WHEN, endpoint, faults  # type: ignore[import-not-found]

VERSION = "1.16.2"
CLOCK, MARK = 0x5A, 0xA5
PORT = 1024


def note(path: str, line: Any) -> None:
    with open(path, "a") as file:
        file.write(json.dumps(line) + "\n")


class Refused(Exception):
    """A request that gets a fault message."""


class StandIn:
    def __init__(self) -> None:
        self.state = "Not started"
        self.told: dict[str, Any] = {}
        self.counter = 0
        self.running = asyncio.Event()
        self.connections: set[asyncio.StreamWriter] = set()
        self.cut = False

    # ── the API

    async def api(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while head := await reader.readuntil(b"\r\n\r\n"):
                lines = head.decode().split("\r\n")
                method, path, _ = lines[0].split(" ")
                headers = dict(line.lower().split(": ", 1) for line in lines[1:] if line)
                raw = await reader.readexactly(int(headers.get("content-length", 0)))
                body = json.loads(raw) if raw else None
                note("asked.jsonl", [method, path, body])
                try:
                    answer = await self.handle(method, path, body)
                except Refused as refusal:
                    answer = 400, {"fault_message": str(refusal)}
                status, told = answer
                data = b"" if told is None else json.dumps(told).encode()
                writer.write(f"HTTP/1.1 {status} x\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data)
                await writer.drain()
        writer.close()

    async def handle(self, method: str, path: str, body: Any) -> tuple[int, Any]:
        name = endpoint(method, path)
        if name not in WHEN:
            raise Refused(f"Invalid request method and/or path: {name}.")
        if name in BODIES and (found := faults(BODIES[name], body)):
            raise Refused("; ".join(found))
        started = self.state != "Not started"
        if WHEN[name] != ALWAYS and (WHEN[name] == AFTER) != started:
            what = "after starting the microVM" if WHEN[name] == BEFORE else "before starting the microVM"
            raise Refused(f"The requested operation is not supported {what}.")
        if name == "GET /":
            told = {"app_name": "Firecracker", "id": "x", "state": self.state, "vmm_version": VERSION}
            return 200, told
        await self.act(name, body)
        return 204, None

    async def act(self, name: str, body: Any) -> None:
        if name == "PUT /actions" and body["action_type"] == "InstanceStart":
            self.start()
        elif name == "PUT /actions" and body["action_type"] == "FlushMetrics":
            line = {"block": {"read_bytes": 4096, "write_bytes": 1}, "vsock": {"rx_packets_count": 2}}
            note(self.told["PUT /metrics"]["metrics_path"], line)
        elif name == "PATCH /vm":
            self.set_paused(body["state"] == "Paused")
        elif name == "PUT /snapshot/create":
            self.capture(body)
        elif name == "PUT /snapshot/load":
            self.load(body)
        elif name == "PUT /metrics":
            if name in self.told:
                raise Refused("Cannot initialize the metrics system twice.")
            self.told[name] = body
        else:
            self.told[name if "{id}" not in name else f"drive {body['drive_id']}"] = body

    def start(self) -> None:
        for name in ("PUT /boot-source", "PUT /machine-config", "PUT /vsock"):
            if name not in self.told:
                raise Refused(f"Cannot start without {name}.")
        boot = self.told["PUT /boot-source"]
        for path in (boot["kernel_image_path"], boot["initrd_path"]):
            self.readable(path)
        for drive in ("drive root", "drive disk"):
            self.readable(self.told[drive]["path_on_host"])
        self.state = "Running"
        self.running.set()
        self.listen()

    def readable(self, path: str) -> None:
        if not os.path.isfile(path):
            raise Refused(f"No such file or directory: {path}")

    def listen(self) -> None:
        path = self.told["PUT /vsock"]["uds_path"]
        self.listening = asyncio.ensure_future(asyncio.start_unix_server(self.vsock, path))

    def set_paused(self, paused: bool) -> None:
        self.state = "Paused" if paused else "Running"
        if paused:
            self.running.clear()
            return
        if self.cut:
            for writer in self.connections:
                writer.close()
            self.connections.clear()
            self.cut = False
        self.running.set()

    def capture(self, body: Any) -> None:
        if self.state != "Paused":
            raise Refused("Cannot create a snapshot of a microVM that is not paused.")
        kept = {"version": VERSION, "told": self.told, "counter": self.counter}
        Path(body["snapshot_path"]).write_text(json.dumps(kept))
        with open(body["mem_file_path"], "r+b") as file:
            file.truncate(self.told["PUT /machine-config"]["mem_size_mib"] << 20)
        self.cut = True

    def load(self, body: Any) -> None:
        if [name for name in self.told if name != "PUT /metrics"]:
            raise Refused("Loading a microVM snapshot not allowed after configuring boot-specific resources.")
        self.readable(body["mem_backend"]["backend_path"])
        try:
            kept = json.loads(Path(body["snapshot_path"]).read_text())
        except ValueError:
            raise Refused("Failed to load snapshot: CRC64 validation failed") from None
        size = kept["told"]["PUT /machine-config"]["mem_size_mib"] << 20
        if os.path.getsize(body["mem_backend"]["backend_path"]) != size:
            raise Refused("Memory file has the wrong size.")
        self.told = kept["told"] | self.told
        self.counter = kept["counter"] + 1
        self.readable(self.told["drive disk"]["path_on_host"])
        self.state = "Paused"
        self.listen()
        if body.get("resume_vm"):
            self.set_paused(False)

    # ── the guest

    async def vsock(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            if await reader.readline() == f"CONNECT {PORT}\n".encode():
                await self.running.wait()
                self.connections.add(writer)
                writer.write(b"OK 1073741824\n")
                await self.echo(reader, writer)
        self.connections.discard(writer)
        writer.close()

    async def echo(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            mark = (await reader.readexactly(1))[0]
            if mark == CLOCK:
                await reader.readexactly(8)
                continue
            assert mark == MARK, mark
            size = int.from_bytes(await reader.readexactly(3), "little")
            packet = await reader.readexactly(size)
            await self.running.wait()
            if packet == b"count":
                packet = str(self.counter).encode()
            if packet == b"lie":  # as a hostile guest would
                writer.write(bytes([MARK, 0xFF, 0xFF, 0xFF]))
            writer.write(bytes([MARK]) + len(packet).to_bytes(3, "little") + packet)
            await writer.drain()


async def firecracker(sock: str) -> None:
    stand_in = StandIn()
    await asyncio.start_unix_server(stand_in.api, sock.lstrip("/"))
    await asyncio.get_running_loop().create_future()


def jailer(words: list[str]) -> None:
    parser = argparse.ArgumentParser()
    for option in ("id", "exec-file", "uid", "gid", "chroot-base-dir", "cgroup-version", "parent-cgroup"):
        parser.add_argument(f"--{option}", required=True)
    parser.add_argument("--cgroup", action="append")
    parser.add_argument("--resource-limit")
    parser.add_argument("--new-pid-ns", action="store_true", required=True)
    parser.add_argument("--daemonize", action="store_true", required=True)
    own, theirs = words[: words.index("--")], words[words.index("--") + 1 :]
    told = parser.parse_args(own)
    root = Path(told.chroot_base_dir) / "firecracker" / told.id / "root"
    root.mkdir(parents=True, exist_ok=True)
    (root / "jailer.json").write_text(json.dumps(vars(told)))
    if (pid := os.fork()) != 0:
        (root / "firecracker.pid").write_text(str(pid))
        return
    os.setsid()
    os.chdir(root)
    nothing = os.open("/dev/null", os.O_RDWR)
    for fd in range(3):
        os.dup2(nothing, fd)
    asyncio.run(firecracker(theirs[theirs.index("--api-sock") + 1]))


if __name__ == "__main__":
    role, *rest = sys.argv[1:]
    if rest == ["--version"]:
        print(f"{role.capitalize()} v{VERSION}")  # noqa: T201
    elif role == "jailer":
        jailer(rest)
