"""Resource samples of the sandboxes that are awake, measured on the host."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from wardian.isolation.port import Machine, MachineStats
from wardian.model.errors import WardianError
from wardian.sandboxes.owner import Owner

SAMPLES_MAX = 1440  # two hours at one every five seconds

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Metric:
    """One host-side sample of a sandbox. Bytes; ``at`` in microseconds since the epoch."""

    at: int
    cpu_count: int
    cpu_used_pct: float
    memory_used: int
    memory_total: int
    memory_cache: int
    disk_used: int
    disk_total: int


class Samples:
    """The last samples of one sandbox."""

    def __init__(self) -> None:
        self._ring: deque[Metric] = deque(maxlen=SAMPLES_MAX)
        self._machine_id = ""
        self._cpu_ns = 0

    def add(self, machine: Machine, stats: MachineStats, *, at: int) -> None:
        """Add a measurement. CPU use is since the measurement before, of the same machine."""
        used_pct = 0.0
        if self._ring and machine.id == self._machine_id and at > self._ring[-1].at:
            elapsed_ns = (at - self._ring[-1].at) * 1000
            used_pct = round(100 * max(0, stats.cpu_ns - self._cpu_ns) / elapsed_ns, 2)
        self._machine_id, self._cpu_ns = machine.id, stats.cpu_ns
        self._ring.append(
            Metric(
                at=at,
                cpu_count=machine.spec.resources.cpu_count,
                cpu_used_pct=used_pct,
                memory_used=stats.memory_bytes,
                memory_total=machine.spec.resources.memory_mib << 20,
                memory_cache=stats.memory_cache_bytes,
                disk_used=stats.disk_bytes,
                disk_total=stats.disk_limit_bytes,
            )
        )

    def repeat(self, *, at: int) -> None:
        """A frozen machine uses no CPU and changes nothing: its last measurement holds."""
        if self._ring:
            self._ring.append(replace(self._ring[-1], at=at, cpu_used_pct=0.0))

    def between(self, start: int | None, end: int | None) -> Sequence[Metric]:
        return [
            metric
            for metric in self._ring
            if (start is None or metric.at >= start) and (end is None or metric.at <= end)
        ]

    @property
    def empty(self) -> bool:
        return not self._ring


class Sampler:
    """One task that samples every owner's machine, and lets those fall idle whose last process ended."""

    def __init__(
        self, owners: Callable[[], Iterable[Owner]], *, every_s: float, now_us: Callable[[], int]
    ) -> None:
        self._owners = owners
        self._every_s = every_s
        self._now_us = now_us
        self._samples: dict[str, Samples] = {}
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._sample_forever(), name="sampler")

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def of(self, sandbox_id: str) -> Samples:
        return self._samples.setdefault(sandbox_id, Samples())

    def forget(self, sandbox_id: str) -> None:
        self._samples.pop(sandbox_id, None)

    async def sample(self, owner: Owner) -> None:
        """Take one sample of a sandbox now."""
        machine, samples = owner.machine, self.of(owner.sandbox.id)
        if machine is None:
            return
        if machine.frozen and not samples.empty:
            samples.repeat(at=self._now_us())
            return
        try:
            samples.add(machine, await machine.stats(), at=self._now_us())
        except (WardianError, OSError):
            _log.debug("sandbox %s could not be measured", owner.sandbox.id, exc_info=True)

    async def _sample_forever(self) -> None:
        while True:
            await asyncio.sleep(self._every_s)
            for owner in list(self._owners()):
                await self.sample(owner)
                owner.consider_idle()
