"""Benches: the sandboxes that a build works in. Never listed, metered like any other, gone when the build is.

A bench belongs to a tenant that nobody can be: the building tenant's name with ``/builds`` behind it, which
no key can be made for. So nothing that lists, finds or counts a tenant's sandboxes comes upon one, and what
a tenant's builds cost stands on a line of its own. The next start ends every bench it finds: what a build
had done so far is in the layer cache, and a half-done step is of no use to anybody.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from wardian.guest.guest import Guest
from wardian.isolation.port import MachineStats
from wardian.model.egress import GrantedHost
from wardian.model.errors import Unavailable
from wardian.model.sandbox import EndReason, Sandbox, SandboxSpec, Snapshot, State
from wardian.sandboxes.acts import capture, create
from wardian.sandboxes.acts import end as ending
from wardian.sandboxes.origins import Origin
from wardian.sandboxes.owner import Owner
from wardian.sandboxes.pool import Source
from wardian.sandboxes.roster import Roster

_MARK = "/builds"
TEMPLATE = "build"
"""What a bench's row says it was made from: nothing that a caller can name."""


def bench_tenant(tenant: str) -> str:
    """Whom the benches of ``tenant``'s builds belong to."""
    return tenant + _MARK


def tenant_of(tenant: str) -> str:
    """Whose build it is that a bench's tenant belongs to; any other tenant is itself."""
    return tenant.removesuffix(_MARK)


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


@asynccontextmanager
async def opened(
    roster: Roster,
    tenant: str,
    source: Source,
    *,
    lifetime_s: int,
    granted: tuple[GrantedHost, ...] = (),
    build_id: str | None = None,
) -> AsyncIterator[Bench]:
    """A bench for a build of ``tenant``'s. It is killed at the end, whatever happens.

    With ``build_id`` what is captured of it is that build's.
    """
    origin = Origin(TEMPLATE, None, source, build_id=build_id)
    spec = SandboxSpec(template=TEMPLATE, timeout_s=lifetime_s, granted_hosts=granted)
    owner, _ = await roster.add(bench_tenant(tenant), origin, spec)
    try:
        await owner.turn(lambda: create.create(owner, source))
        async with owner.use() as guest:
            yield Bench(owner, guest)
    finally:
        await asyncio.shield(asyncio.ensure_future(_clear(owner)))


async def clear_left(roster: Roster) -> None:
    """End what builds of an earlier server left: nobody is waiting for it."""
    left = [owner for owner in roster.owners.values() if is_bench(owner.sandbox)]
    await asyncio.gather(*(_clear(owner) for owner in left))


async def _clear(owner: Owner) -> None:
    if owner.sandbox.state is not State.ENDED:
        await owner.turn(lambda: _end_if_there(owner))


async def _end_if_there(owner: Owner) -> None:
    if owner.sandbox.state is not State.ENDED:
        await ending.end(owner, EndReason.KILLED)
