"""One machine driven in this very process, with no server, no HTTP and no database around it.

What it measures is the isolation driver and the guest protocol alone: what a server can at best reach.
"""

from __future__ import annotations

import asyncio
import secrets
import shutil
import time
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import uvloop

from wardian.guest.guest import Guest, Identity, ProcessConfig
from wardian.isolation.gvisor import GvisorDriver, Tools
from wardian.isolation.port import Machine, MachineImage, MachineSpec, RootImage
from wardian.model.resources import Resources

T = TypeVar("T")


@dataclass(slots=True)
class Inhabited:
    """A machine and the host's end of its agent."""

    machine: Machine
    guest: Guest


class Islands:
    """A driver of our own and a loop to run it in; every method is synchronous and returns milliseconds."""

    def __init__(self, scratch: Path, root: RootImage, tools: Tools) -> None:
        self._scratch = scratch
        self._runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
        self._driver = GvisorDriver(scratch / "islands", tools)
        self._spec = MachineSpec(root=root, resources=Resources())

    def close(self) -> None:
        """Destroy every machine and end the loop."""
        self._do(self._driver.sweep(frozenset()))
        self._do(self._driver.close())
        self._runner.close()

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

    def restore(self, image: MachineImage) -> float:
        """Restore into a machine that was booted beforehand, until its agent has answered."""

        async def timed() -> float:
            prepared = await self._driver.prepare(self._spec)
            started = time.perf_counter()
            machine = await prepared.restore(image)
            guest = Guest(machine.link)
            await guest.attach(2, _identity())
            spent = 1000 * (time.perf_counter() - started)
            await _leave(Inhabited(machine, guest))
            return spent

        return self._do(timed())

    @staticmethod
    def remove(image: MachineImage) -> None:
        shutil.rmtree(image.directory)

    async def _start(self) -> Inhabited:
        prepared = await self._driver.prepare(self._spec)
        machine = await prepared.start()
        guest = Guest(machine.link)
        await guest.attach(1, _identity())
        return Inhabited(machine, guest)

    def _do(self, work: Coroutine[Any, Any, T]) -> T:
        return self._runner.run(work)


async def _leave(here: Inhabited) -> None:
    await here.guest.close()
    await here.machine.kill()


def _identity() -> Identity:
    return Identity(hostname="bench", machine_id=secrets.token_hex(16))
