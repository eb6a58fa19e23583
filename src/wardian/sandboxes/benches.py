"""Benches: the sandboxes that a build works in. Never listed, metered like any other, gone when the build is.

A bench belongs to a tenant that nobody can be: the building tenant's name with ``/builds`` behind it, which
no key can be made for. So nothing that lists, finds or counts a tenant's sandboxes comes upon one, and what
a tenant's builds cost stands on a line of its own. The next start ends every bench it finds: what a build
had done so far is in the layer cache, and a half-done step is of no use to anybody.
"""

from __future__ import annotations

from dataclasses import dataclass

from wardian.guest.guest import Guest
from wardian.isolation.port import MachineStats
from wardian.model.errors import Unavailable
from wardian.model.sandbox import Sandbox, Snapshot
from wardian.sandboxes.acts import capture
from wardian.sandboxes.owner import Owner

_MARK = "/builds"
TEMPLATE = "build"
"""What a bench's row says it was made from: nothing that a caller can name."""


def bench_tenant(tenant: str) -> str:
    """Whom the benches of ``tenant``'s builds belong to."""
    return tenant + _MARK


def is_bench(sandbox: Sandbox) -> bool:
    """Whether a sandbox was made for a build."""
    return sandbox.tenant.endswith(_MARK)


@dataclass(frozen=True, slots=True)
class Bench:
    """One running machine in the hands of a build. ``guest`` is awake for as long as the bench is there."""

    owner: Owner
    guest: Guest

    @property
    def sandbox(self) -> Sandbox:
        return self.owner.sandbox

    async def stats(self) -> MachineStats:
        """What the host measures of the machine."""
        machine = self.owner.machine
        if machine is None:
            raise Unavailable("the build's machine is gone", code="machine_gone")
        return await machine.stats()

    async def snapshot(self) -> Snapshot:
        """Capture memory and disk as the warm snapshot of a template; the bench runs on."""
        return await self.owner.turn(lambda: capture.take_snapshot(self.owner, None, kind="template"))
