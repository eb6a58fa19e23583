"""One machine driven in this very process, with no server, no HTTP and no database around it.

What it measures is the isolation driver and the guest protocol alone: what a server can at best reach.
"""

from __future__ import annotations

import asyncio
import secrets
import shutil
import socket
import time
from collections.abc import AsyncIterator, Coroutine, Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import uvloop

from wardian.guest.guest import Guest, Identity, Output, ProcessConfig
from wardian.isolation.port import MachineImage, MachineSpec, RootImage
from wardian.model.resources import Resources

T = TypeVar("T")
PATIENCE_S = 120
"""How long an agent may take to answer: an emulated machine that boots on a busy host takes long."""


class Running(Protocol):
    """What is asked of a machine. ``record`` names its process, as the drivers' own do."""

    link: socket.socket

    @property
    def record(self) -> dict[str, Any]: ...
    async def freeze(self) -> None: ...
    async def thaw(self) -> None: ...
    async def capture(self, directory: Path, *, keep_running: bool) -> MachineImage: ...
    async def kill(self) -> None: ...


class Waiting(Protocol):
    """What becomes one."""

    async def start(self) -> Running: ...
    async def restore(self, image: MachineImage) -> Running: ...
    async def discard(self) -> None: ...


class Maker(Protocol):
    """What makes those: a driver, or a peer that is driven like one."""

    async def prepare(self, spec: MachineSpec) -> Waiting: ...
    async def sweep(self, known: Set[str]) -> list[str]: ...
    async def close(self) -> None: ...


@dataclass(slots=True)
class Inhabited:
    """A machine and the host's end of its agent."""

    machine: Running
    guest: Guest

    @property
    def pid(self) -> int:
        """Of the process that holds the machine's memory."""
        record = self.machine.record
        return int(record["vmm" if "vmm" in record else "sentry"]["pid"])


class Islands:
    """A driver of our own and a loop to run it in; every method is synchronous and returns milliseconds."""

    def __init__(self, scratch: Path, root: RootImage, maker: Maker) -> None:
        self._scratch = scratch
        self._runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
        self._driver = maker
        self._spec = MachineSpec(root=root, resources=Resources())

    def close(self) -> None:
        """Destroy every machine and end the loop."""
        self._do(self._driver.sweep(frozenset()))
        self._do(self._driver.close())
        self._runner.close()

    def boot(self) -> float:
        """From nothing to an agent that has answered."""
        started = time.perf_counter()
        here = self._do(self._start())
        spent = 1000 * (time.perf_counter() - started)
        self._do(_leave(here))
        return spent

    @contextmanager
    def inhabited(self) -> Iterator[Inhabited]:
        """A running machine whose agent has answered."""
        here = self._do(self._start())
        try:
            yield here
        finally:
            self._do(_leave(here))

    def execute(self, here: Inhabited, *argv: str) -> float:
        """Run one command over the link, to its exit."""

        async def timed() -> float:
            started = time.perf_counter()
            config = ProcessConfig(cmd=argv[0], args=argv[1:], envs={}, cwd=None)
            process = await here.guest.exec(config)
            async for _ in process.subscribe():
                pass
            return 1000 * (time.perf_counter() - started)

        return self._do(timed())

    def output(self, here: Inhabited, *argv: str) -> str:
        """What a command prints, which must succeed."""

        async def told() -> str:
            process = await here.guest.exec(ProcessConfig(cmd=argv[0], args=argv[1:], envs={}, cwd="/tmp"))
            text = b""
            async for item in process.subscribe():
                if isinstance(item, Output):
                    text += item.data
                elif item.exit_code:
                    raise RuntimeError(f"{argv[0]} ended with {item.exit_code}: {text[-200:]!r}")
            return text.decode()

        return self._do(told())

    def put(self, here: Inhabited, path: str, content: bytes) -> None:
        """Write a program."""

        async def chunks() -> AsyncIterator[bytes]:
            yield content

        self._do(here.guest.write(path, chunks(), mode=0o755))

    def freeze_and_thaw(self, here: Inhabited) -> tuple[float, float]:
        """Stop the machine and let it go on."""

        async def timed() -> tuple[float, float]:
            started = time.perf_counter()
            await here.machine.freeze()
            frozen = time.perf_counter()
            await here.machine.thaw()
            return 1000 * (frozen - started), 1000 * (time.perf_counter() - frozen)

        return self._do(timed())

    def captured(self, here: Inhabited) -> tuple[MachineImage, float]:
        """Capture it and let it go on; the image is the caller's to remove."""

        async def timed() -> tuple[MachineImage, float]:
            directory = self._scratch / f"capture-{secrets.token_hex(4)}"
            directory.mkdir()
            started = time.perf_counter()
            await here.guest.quiesce()
            image = await here.machine.capture(directory, keep_running=True)
            await here.guest.unquiesce()
            return image, 1000 * (time.perf_counter() - started)

        return self._do(timed())

    def restore(self, image: MachineImage, *, waiting: bool = True) -> float:
        """Restore until the agent has answered, into a machine that waits, or that is made for it."""
        with self.clones(image, 1, waiting=waiting) as (_, spent):
            return spent

    @contextmanager
    def clones(
        self, image: MachineImage, count: int, *, waiting: bool
    ) -> Iterator[tuple[Sequence[Inhabited], float]]:
        """So many clones at once, and how long it took until the last one's agent had answered."""

        async def made() -> tuple[Sequence[Inhabited], float]:
            places: list[Waiting | None] = [None] * count
            if waiting:
                places = [await self._driver.prepare(self._spec) for _ in places]
            started = time.perf_counter()
            found = await asyncio.gather(*(self._restored(image, place) for place in places))
            return found, 1000 * (time.perf_counter() - started)

        found, spent = self._do(made())
        try:
            yield found, spent
        finally:
            for here in found:
                self._do(_leave(here))

    @staticmethod
    def remove(image: MachineImage) -> None:
        shutil.rmtree(image.directory)

    async def _start(self) -> Inhabited:
        prepared = await self._driver.prepare(self._spec)
        machine = await prepared.start()
        guest = Guest(machine.link)
        await guest.attach(1, _identity(), timeout_s=PATIENCE_S)
        return Inhabited(machine, guest)

    async def _restored(self, image: MachineImage, place: Waiting | None) -> Inhabited:
        prepared = place or await self._driver.prepare(self._spec)
        machine = await prepared.restore(image)
        guest = Guest(machine.link)
        await guest.attach(2, _identity(), timeout_s=PATIENCE_S)
        return Inhabited(machine, guest)

    def act(self, work: Coroutine[Any, Any, T]) -> T:
        """What comes of something else that is done in the loop."""
        return self._do(work)

    def _do(self, work: Coroutine[Any, Any, T]) -> T:
        return self._runner.run(work)


async def _leave(here: Inhabited) -> None:
    await here.guest.close()
    await here.machine.kill()


def _identity() -> Identity:
    return Identity(hostname="bench", machine_id=secrets.token_hex(16))
