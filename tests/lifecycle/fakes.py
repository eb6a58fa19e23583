"""A driver whose machines are made of memory, and an agent that speaks just enough of the guest protocol.

The :class:`World` is what a real host would keep while the server is away: machines and their state. A
driver is one server's view of it; several may come and go.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import socket
import stat
from collections.abc import Callable, Mapping, Set
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

from wardian.guest import frames
from wardian.guest.carrying import Content, Node, encode
from wardian.images.erofs_writer import write_image
from wardian.images.tree import Tree
from wardian.isolation.port import (
    Capabilities,
    Driver,
    ImageRefused,
    IsolationLevel,
    Machine,
    MachineExit,
    MachineGone,
    MachineImage,
    MachineSpec,
    MachineStats,
    Prepared,
    RootImage,
)
from wardian.model.errors import WardianError
from wardian.model.resources import Resources

BUILD = "fake-1"
CPU = frozenset({"fast"})
SMALL = Resources(cpu_count=1, memory_mib=128, disk_mib=64, processes_max=64)


@dataclass
class Faults:
    """What goes wrong next. Each is counted down by one use."""

    prepare: int = 0
    capture: int = 0
    restore: int = 0
    quiesce: int = 0  # the agent does not answer

    def strikes(self, name: str) -> bool:
        left: int = getattr(self, name)
        setattr(self, name, max(0, left - 1))
        return left > 0


@dataclass
class Inside:
    """What a guest knows: its part of a snapshot."""

    hostname: str = "fresh"
    machine_id: str = ""
    boot_id: str = "boot-0"
    files: dict[str, str] = field(default_factory=dict)
    processes: int = 0
    counter: int = 0


class Body:
    """A machine as the host has it: a link, a guest, alive or not."""

    def __init__(self, world: World, number: int, spec: MachineSpec) -> None:
        self.world, self.spec = world, spec
        self.id = f"m{number}"
        self.start = number
        self.inside = Inside()
        self.frozen = False
        self.quiesced = False
        self.booted = False
        self._unpacking = b""
        self.ended: asyncio.Event = asyncio.Event()
        self.exit = MachineExit("killed")
        self.host_end, self._guest_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (self.host_end, self._guest_end):
            end.setblocking(False)

    def boot(self) -> None:
        self.booted = True
        self._listen()

    def freeze(self) -> None:
        self.frozen = True
        asyncio.get_running_loop().remove_reader(self._guest_end)

    def thaw(self) -> None:
        self.frozen = False
        self._listen()

    def _listen(self) -> None:
        asyncio.get_running_loop().add_reader(self._guest_end, self._read)

    def _read(self) -> None:
        while not self.frozen and not self.ended.is_set():
            try:
                packet = self._guest_end.recv(1 << 18)
            except BlockingIOError:
                return
            if not packet:
                self.end("exited")
                return
            self._answer(packet)

    def _answer(self, packet: bytes) -> None:
        kind, _, _, stream = frames.HEADER.unpack_from(packet)
        body = packet[frames.HEADER_SIZE :]
        if kind == frames.ATTACH:
            self._attach(body)
        elif kind == frames.QUIESCE and not self.world.faults.strikes("quiesce"):
            self.quiesced = True
            self._send(frames.QUIESCED, 0, 0)
        elif kind == frames.UNQUIESCE:
            self.quiesced = False
        elif kind == frames.RELIEVE:
            self.inside.processes = 0
        elif kind == frames.OPEN and body[0] == frames.OP_STATS:
            told = [frames.number(tag, 1, 8) for tag in (1, 2, 3, 4, 6, 7)]
            told.append(frames.number(5, self.inside.processes, 4))
            self._send(frames.REPLY, frames.FIN, stream, bytes(4) + b"".join(told))
        elif kind == frames.OPEN and body[0] == frames.OP_PACK:
            self._pack(stream)
        elif kind == frames.OPEN and body[0] == frames.OP_UNPACK:
            self._unpacking = b""
            self._send(frames.REPLY, 0, stream, bytes(4))
        elif kind == frames.DATA:
            self._unpacking += body
        elif kind == frames.EOF:
            self._unpack(stream)

    def _pack(self, stream: int) -> None:
        """Two files are all there is: what is inside, without its processes and its names."""
        self._send(frames.REPLY, 0, stream, bytes(4))
        if self.world.faults.strikes("capture"):
            failure = frames.number(4, 28, 4) + frames.field(2, b"/: no space")
            self._send(frames.DATA, 0, stream, frames.field(6, failure))
        else:
            kept = json.dumps({"counter": self.inside.counter}).encode()
            root, file = stat.S_IFDIR | 0o755, stat.S_IFREG | 0o644
            records = (Node(b"", root), Node(b"kept", file, size=len(kept)), Content(0, kept))
            told = b"".join(encode(record) for record in records) + frames.field(5, b"")
            self._send(frames.DATA, 0, stream, told)
        self._send(frames.END, 0, stream, bytes(4))

    def _unpack(self, stream: int) -> None:
        kept = next(value[8:] for tag, value in frames.fields(self._unpacking) if tag == 2)
        self.inside.counter = json.loads(kept)["counter"]
        self._send(frames.DATA, 0, stream, frames.field(5, b""))
        self._send(frames.END, 0, stream, bytes(4))

    def _attach(self, body: bytes) -> None:
        told: dict[int, list[bytes]] = {}
        for tag, value in frames.fields(body):
            told.setdefault(tag, []).append(value)
        inside = self.inside
        inside.hostname = told.get(3, [inside.hostname.encode()])[0].decode()
        inside.machine_id = told.get(4, [inside.machine_id.encode()])[0].decode()
        inside.boot_id = told.get(7, [inside.boot_id.encode()])[0].decode()
        for raw in told.get(8, []):
            path, _, content = raw.split(b"\0", 2)
            inside.files[path.decode()] = content.decode()
        self.quiesced = False
        hello = frames.number(1, frames.VERSION, 2) + frames.field(2, told[2][0]) + frames.field(3, b"fake")
        self._send(frames.HELLO, 0, 0, hello)

    def _send(self, kind: int, flags: int, stream: int, payload: bytes = b"") -> None:
        self._guest_end.send(frames.HEADER.pack(kind, flags, 0, stream) + payload)

    def end(self, reason: str) -> None:
        if self.ended.is_set():
            return
        self.exit = MachineExit(reason)
        self.ended.set()
        asyncio.get_running_loop().remove_reader(self._guest_end)
        self._guest_end.close()
        self.host_end.close()
        self.world.bodies.pop(self.id, None)


class World:
    """One host: every machine there is of the driver called ``name``, with the wall it says it has.

    With a ``reason`` it cannot make any.
    """

    def __init__(self, name: str = "memory", level: IsolationLevel = IsolationLevel.GVISOR) -> None:
        self.name, self.level, self.reason = name, level, ""
        self.bodies: dict[str, Body] = {}
        self.faults = Faults()
        self._numbers = itertools.count(1)

    def body(self, spec: MachineSpec) -> Body:
        body = Body(self, next(self._numbers), spec)
        self.bodies[body.id] = body
        return body

    def clear(self) -> None:
        """The host is rebooted."""
        for body in list(self.bodies.values()):
            body.end("lost")


class MemoryMachine(Machine):
    def __init__(self, body: Body) -> None:
        self.level = body.world.level
        self.body, self.id, self.spec = body, body.id, body.spec
        self.link = body.host_end.dup()
        self.pressed: Callable[[], None] = lambda: None

    @property
    def record(self) -> dict[str, Any]:
        return {"id": self.id, "start": self.body.start}

    @property
    def frozen(self) -> bool:
        return self.body.frozen

    async def freeze(self) -> None:
        self._check()
        self.body.freeze()

    async def thaw(self) -> None:
        self._check()
        self.body.thaw()

    async def capture(self, directory: Path, *, keep_running: bool) -> MachineImage:
        self._check()
        assert self.body.quiesced, "captured without a quiesced guest"
        if self.body.world.faults.strikes("capture"):
            (directory / "half").write_bytes(b"half")
            raise WardianError("the capture failed", code="capture_failed")
        raw = json.dumps(asdict(self.body.inside)).encode()
        (directory / "memory").write_bytes(raw)
        if not keep_running:
            self.body.end("killed")
        return MachineImage(
            directory=directory,
            files={"memory": len(raw)},
            driver=self.body.world.name,
            build=BUILD,
            cpu_features=CPU,
            root_digest=self.spec.root.digest,
            resources=self.spec.resources,
        )

    async def stats(self) -> MachineStats:
        self._check()
        return MachineStats(1, 1, 128 << 20, 0, 0, 64 << 20, self.body.inside.processes)

    def on_memory_pressure(self, callback: Callable[[], None]) -> None:
        self.pressed = callback

    async def kill(self) -> None:
        self.body.end("killed")
        self.link.close()

    async def wait(self) -> MachineExit:
        await self.body.ended.wait()
        return self.body.exit

    def _check(self) -> None:
        if self.body.ended.is_set():
            raise MachineGone(f"machine {self.id} is gone")


class MemoryPrepared(Prepared):
    def __init__(self, body: Body) -> None:
        self.body, self.id, self.spec = body, body.id, body.spec

    async def park(self) -> None:
        pass

    async def start(self) -> Machine:
        self._check()
        self.body.boot()
        return MemoryMachine(self.body)

    async def restore(self, image: MachineImage) -> Machine:
        self._check()
        if self.body.world.faults.strikes("restore"):
            raise ImageRefused("the restore failed")
        assert image.driver == self.body.world.name, "restored by a driver that did not capture it"
        raw = await asyncio.to_thread((image.directory / "memory").read_bytes)
        self.body.inside = Inside(**json.loads(raw))
        self.body.quiesced = True
        self.body.boot()
        return MemoryMachine(self.body)

    async def discard(self) -> None:
        self.body.end("killed")

    def _check(self) -> None:
        if self.body.ended.is_set():
            raise MachineGone(f"machine {self.id} is gone")


class MemoryDriver(Driver):
    def __init__(self, world: World) -> None:
        self.world, self.name, self.level = world, world.name, world.level

    async def probe(self) -> Capabilities:
        reason = self.world.reason
        return Capabilities(
            self.name, self.level, usable=not reason, build=BUILD, cpu_features=CPU, reason=reason
        )

    async def prepare(self, spec: MachineSpec) -> Prepared:
        if self.world.faults.strikes("prepare"):
            raise WardianError("no machine could be made", code="prepare_failed")
        await asyncio.sleep(0)
        return MemoryPrepared(self.world.body(spec))

    async def attach(self, record: Mapping[str, Any]) -> Machine:
        body = self.world.bodies.get(record.get("id", ""))
        if body is None or body.start != record["start"]:
            raise MachineGone("the machine is gone")
        return MemoryMachine(body)

    async def sweep(self, known: Set[str]) -> list[str]:
        doomed = sorted(set(self.world.bodies) - known)
        for machine_id in doomed:
            self.world.bodies[machine_id].end("killed")
        return doomed

    async def close(self) -> None:
        pass


_EMPTY = NamedTemporaryFile(suffix=".erofs")  # noqa: SIM115 — as long as the tests run
write_image(Tree(), [], _EMPTY)  # type: ignore[arg-type]
ROOT = RootImage(Path(_EMPTY.name), "sha256:" + "0" * 64)
