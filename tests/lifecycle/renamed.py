"""A second real driver for tests of several: gVisor under another name, that says another level.

Its images say its own name, and it refuses those of any other, as a driver of its own kind would.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from wardian.isolation.gvisor import GvisorDriver, Tools
from wardian.isolation.port import (
    Capabilities,
    ImageRefused,
    IsolationLevel,
    Machine,
    MachineImage,
    MachineSpec,
    Prepared,
)


class RenamedGvisor(GvisorDriver):
    """Only for tests: the level it says is not true."""

    def __init__(self, name: str, level: IsolationLevel, state: Path, tools: Tools, **more: Any) -> None:
        super().__init__(state, tools, **more)
        self.name, self.level = name, level

    async def probe(self) -> Capabilities:
        return replace(await super().probe(), driver=self.name, level=self.level)

    async def prepare(self, spec: MachineSpec) -> Prepared:
        prepared = await super().prepare(spec)
        start, restore = prepared.start, prepared.restore

        async def renamed_start() -> Machine:
            return self._renamed(await start())

        async def renamed_restore(image: MachineImage) -> Machine:
            if image.driver != self.name:
                raise ImageRefused(f"{self.name} cannot restore what {image.driver} captured")
            return self._renamed(await restore(replace(image, driver=GvisorDriver.name)))

        prepared.start = renamed_start  # type: ignore[method-assign]
        prepared.restore = renamed_restore  # type: ignore[method-assign]
        return prepared

    async def attach(self, record: Mapping[str, Any]) -> Machine:
        return self._renamed(await super().attach(record))

    def _renamed(self, machine: Machine) -> Machine:
        capture = machine.capture

        async def renamed_capture(directory: Path, *, keep_running: bool) -> MachineImage:
            return replace(await capture(directory, keep_running=keep_running), driver=self.name)

        machine.level = self.level
        machine.capture = renamed_capture  # type: ignore[method-assign]
        return machine
