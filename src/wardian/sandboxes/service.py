"""The verbs on sandboxes, as every front door (E2B API, CLI, later runs) calls them.

Each verb takes the tenant first: an id of another tenant is answered exactly like an id that does not exist.
"""

from __future__ import annotations

import asyncio
import copy
import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from typing import Any

from sqlalchemy import Connection

from wardian.guest.guest import Guest
from wardian.isolation.drivers import IsolationUnavailable
from wardian.isolation.port import Driver, IsolationLevel, MachineImage, MachineSpec, RootImage
from wardian.model.egress import Egress, EgressGrant, EgressMode, GrantedHost
from wardian.model.errors import Invalid, NotFound, WardianError
from wardian.model.isolation import Wanted
from wardian.model.resources import Resources
from wardian.model.sandbox import EndReason, Sandbox, SandboxSpec, Snapshot, State
from wardian.model.template import Build
from wardian.model.usage import Usage
from wardian.sandboxes import benches, equipping, forks, history, kept, listing
from wardian.sandboxes.acts import capture, create, network, pause, resume
from wardian.sandboxes.acts import end as ending
from wardian.sandboxes.benches import Bench
from wardian.sandboxes.egress import NO_BOUND, check_bound, settled
from wardian.sandboxes.listing import PUBLIC_STATES, ListQuery, Page
from wardian.sandboxes.machines import source_of
from wardian.sandboxes.origins import Origin, Origins, WarmUp
from wardian.sandboxes.owner import Owner, not_found
from wardian.sandboxes.pool import Source
from wardian.sandboxes.reconciler import Outcome, reconcile
from wardian.sandboxes.roster import HIDDEN, RESUME_TIMEOUT_S, Roster
from wardian.sandboxes.sampler import Metric
from wardian.sandboxes.templates import Templates
from wardian.sandboxes.workshop import Workshop
from wardian.store import sandboxes, snapshots

__all__ = ["ListQuery", "Metric", "Page", "Sandboxes"]

CLOSE_PATIENCE_S = 10.0

_log = logging.getLogger(__name__)


class Sandboxes:
    """The sandboxes of one node. :meth:`start` before use, :meth:`close` after; machines outlive both."""

    def __init__(self, works: Workshop, templates: Templates) -> None:
        self._works = works
        self._templates = templates
        self._origins = Origins(works, templates)
        self.roster = Roster(works)
        self._wanted = Wanted()

    def within(self, wanted: Wanted) -> Sandboxes:
        """The same sandboxes, for somebody who may only get, or get into, what has the isolation ``wanted``.

        Every verb that gives a sandbox holds to it, so a front door cannot forget to.
        """
        bound = copy.copy(self)
        bound._wanted = wanted
        return bound

    def warm_up_with(self, warm_up: WarmUp) -> None:
        """How a build is made warm for a driver that did not build it."""
        self._origins.warm_up = warm_up

    async def start(self) -> Outcome:
        """Reconcile what an earlier server left, then begin to fill the pools."""
        works, roster = self._works, self.roster
        for sandbox in await works.database.read(lambda conn: sandboxes.not_ended(conn, works.lease.node_id)):
            roster.adopt(sandbox)
        outcome = await reconcile(works, dict(roster.owners))
        await benches.clear_left(roster)
        for owner in list(roster.owners.values()):
            roster.changed(owner)
        await self.keep_house_warm()
        works.pool.start()
        roster.sampler.start()
        return outcome

    async def keep_house_warm(self) -> None:
        """Let the pool always hold machines of the house's templates, as these are by now."""
        kept: list[tuple[Source, int | None]] = []
        for edition in await self._templates.house():
            try:
                origin = await self._origins.of_template(edition, Wanted())
            except IsolationUnavailable as error:  # nothing here runs at native speed
                _log.info("template %s is not kept warm: %s", edition.template.id, error)
            else:
                kept.append((origin.source, self._works.options.hot.get(edition.template.alias or "")))
        self._works.pool.keep_warm(kept)

    async def close(self) -> None:
        """Let what was begun finish, destroy the pools, and let go. Sandboxes go on running."""
        roster = self.roster
        roster.alarms.close()
        await roster.sampler.close()
        await self._origins.close()
        await asyncio.gather(*(owner.close(CLOSE_PATIENCE_S) for owner in roster.owners.values()))
        await self._works.pool.close()

    # ── create, get, list

    async def create(
        self,
        tenant: str,
        spec: SandboxSpec,
        *,
        mode: EgressMode | None = None,
        bound: EgressGrant = NO_BOUND,
    ) -> Sandbox:
        """A new sandbox, running. With an idempotency key used before, the sandbox that use made.

        ``mode`` is how wide its egress was asked to be, if it was; ``bound`` is how wide it may be.
        """
        self._check_timeout(spec.timeout_s)
        spec = replace(spec, isolation=spec.isolation.and_also(self._wanted))
        origin = await self._origins.find(tenant, spec.template, spec.isolation)
        return await self._make(tenant, origin, settled(spec, mode, default=origin.egress, bound=bound))

    async def _make(self, tenant: str, origin: Origin, spec: SandboxSpec) -> Sandbox:
        reservation = self._works.pool.reserve(origin.source)
        made = False
        try:
            owner, made = await self.roster.add(tenant, origin, spec)
        finally:
            if not made and reservation is not None:
                await asyncio.shield(self._works.pool.release(reservation))
        if made:
            await owner.turn(lambda: create.create(owner, origin.source, reservation))
        else:
            await owner.turn(_nothing)  # whoever is making it finishes first
            _check_present(owner)
            _check_isolation(owner, spec.isolation)
        return owner.sandbox

    async def get(self, tenant: str, sandbox_id: str) -> Sandbox:
        """What a sandbox is. To get into it is another matter: :meth:`may_enter`."""
        return self.roster.owner(tenant, sandbox_id).sandbox

    def may_enter(self, sandbox: Sandbox) -> bool:
        """Whether its wall is strong enough to be given the keys to its data plane."""
        return IsolationLevel(sandbox.isolation).satisfies(self._wanted.minimum)

    async def list(self, tenant: str, query: ListQuery) -> Page:
        """A page by start time, newest first unless asked otherwise."""
        return await listing.page(self._works.database, self._templates, tenant, query)

    async def forget_builds(self, builds: Sequence[Build], snapshot_ids: Sequence[str]) -> None:
        """Let go of what stood on builds that are gone: machines that waited, and their warm snapshots."""
        for build in builds:
            self._origins.forget(build.id)
            await self._works.pool.drop(build.id)
        await self.drop_snapshots(snapshot_ids)

    async def drop_snapshots(self, snapshot_ids: Sequence[str]) -> None:
        """Remove the files of snapshots whose rows are gone."""
        for snapshot_id in snapshot_ids:
            await self._works.snapshots.remove(snapshot_id)

    # ── time

    async def set_timeout(self, tenant: str, sandbox_id: str, timeout_s: int) -> Sandbox:
        """Let a running sandbox's time be up in ``timeout_s`` from now; 0 is at once."""
        if timeout_s:
            self._check_timeout(timeout_s)
        owner = self.roster.owner(tenant, sandbox_id)

        async def command() -> None:
            _check_running(owner)
            await owner.change(end_at=self._works.now_us() + timeout_s * 1_000_000)

        await owner.turn(command)
        return owner.sandbox

    async def refresh(self, tenant: str, sandbox_id: str, duration_s: int) -> Sandbox:
        """Keep a running sandbox for at least ``duration_s`` from now."""
        owner = self.roster.owner(tenant, sandbox_id)
        await owner.turn(lambda: self._extend(owner, duration_s))
        return owner.sandbox

    async def _extend(self, owner: Owner, timeout_s: int) -> None:
        _check_running(owner)
        end_at = self._works.now_us() + timeout_s * 1_000_000
        if end_at > owner.sandbox.end_at:
            await owner.change(end_at=end_at)

    async def connect(
        self, tenant: str, sandbox_id: str, timeout_s: int | None, *, memory: bool = True
    ) -> tuple[Sandbox, bool]:
        """Extend a running sandbox (never shorten) or resume a paused one. The flag says it was resumed.

        Without ``memory`` a paused one is booted anew from its files; a running one is left running.
        """
        if timeout_s is not None:
            self._check_timeout(timeout_s)
        owner = self.roster.owner(tenant, sandbox_id)

        async def command() -> bool:
            if owner.sandbox.state is State.PAUSED:
                until = RESUME_TIMEOUT_S if timeout_s is None else timeout_s
                await resume.resume(owner, until, memory=memory, wanted=self._wanted)
                return True
            _check_isolation(owner, self._wanted)
            if timeout_s is not None:
                await self._extend(owner, timeout_s)
            return False

        resumed = await owner.turn(command)
        _check_present(owner)
        return owner.sandbox, resumed

    def _check_timeout(self, timeout_s: int) -> None:
        most = self._works.options.timeout_max_s
        if timeout_s <= 0:
            raise Invalid("Timeout must be greater than 0", code="bad_timeout")
        if timeout_s > most:
            raise Invalid(f"Timeout cannot be greater than {most / 3600:g} hours", code="bad_timeout")

    # ── pause, resume, kill, network

    async def pause(self, tenant: str, sandbox_id: str, *, memory: bool = True) -> Sandbox:
        """Memory and disk to a snapshot, machine gone. Survives a power cut once it returns.

        Without ``memory`` the files alone: a resume is then a boot.
        """
        owner = self.roster.owner(tenant, sandbox_id)
        await owner.turn(lambda: pause.pause(owner, memory=memory))
        return owner.sandbox

    async def resume(
        self, tenant: str, sandbox_id: str, timeout_s: int | None, *, memory: bool = True
    ) -> Sandbox:
        """A paused sandbox runs again, every process where it was. A failure leaves it paused and intact."""
        if timeout_s is not None:
            self._check_timeout(timeout_s)
        owner = self.roster.owner(tenant, sandbox_id)
        until = RESUME_TIMEOUT_S if timeout_s is None else timeout_s
        wanted = self._wanted
        await owner.turn(lambda: resume.resume(owner, until, memory=memory, wanted=wanted))
        return owner.sandbox

    async def kill(self, tenant: str, sandbox_id: str) -> None:
        """End a sandbox, running or paused."""
        owner = self.roster.owner(tenant, sandbox_id)
        await owner.turn(lambda: ending.end(owner, EndReason.KILLED))

    async def set_network(
        self,
        tenant: str,
        sandbox_id: str,
        *,
        egress: Egress,
        mode: EgressMode | None = None,
        bound: EgressGrant = NO_BOUND,
    ) -> Sandbox:
        """Replace the rules of what may leave a sandbox, running or paused.

        ``mode`` and ``bound`` are as for :meth:`create`.
        """
        owner = self.roster.owner(tenant, sandbox_id)
        default = await self._origins.egress_of(owner.sandbox.build_id)
        asked = replace(owner.sandbox.spec, egress=egress, allow_internet=True)
        new = settled(asked, mode, default=default, bound=bound)
        await owner.turn(
            lambda: network.set_rules(owner, egress=new.egress, allow_internet=new.allow_internet)
        )
        return owner.sandbox

    # ── forks and snapshots

    async def fork(
        self,
        tenant: str,
        sandbox_id: str,
        *,
        count: int,
        timeout_s: int | None,
        speculative: bool = False,
        bound: EgressGrant = NO_BOUND,
    ) -> Sequence[Sandbox | WardianError]:
        """``count`` clones of a running sandbox, which goes on. Each succeeds or fails by itself.

        ``speculative`` clones do nothing outside until they are promoted; clones of such a one are so, too.
        """
        if timeout_s is not None:
            self._check_timeout(timeout_s)
        parent = self.roster.owner(tenant, sandbox_id)
        check_bound(parent.sandbox.spec, bound)
        return await forks.fork(
            self._works,
            self.roster,
            self._origins,
            parent,
            self._wanted,
            count=count,
            timeout_s=timeout_s,
            speculative=speculative,
        )

    async def promote(self, tenant: str, sandbox_id: str) -> Sandbox:
        """Let a speculative branch do what it held back, once it asks again. Idempotent."""
        owner = self.roster.owner(tenant, sandbox_id)

        async def command() -> None:
            owner.check_present()
            if owner.sandbox.spec.speculative:
                await owner.change(spec=replace(owner.sandbox.spec, speculative=False))
                owner.log.append("sandbox.promoted")

        await owner.turn(command)
        return owner.sandbox

    async def snapshot(
        self, tenant: str, sandbox_id: str, *, name: str | None, memory: bool = True
    ) -> Snapshot:
        """A snapshot of a running sandbox, kept until deleted; sandboxes can be created from it.

        Without ``memory`` it holds the files alone, and what is created from it is booted.
        """
        owner = self.roster.owner(tenant, sandbox_id)
        return await owner.turn(lambda: capture.take_snapshot(owner, name, memory=memory))

    async def find_snapshot(self, tenant: str, reference: str) -> Snapshot | None:
        """A kept snapshot of the tenant's, by id or name."""
        return await kept.find(self._works, tenant, reference)

    async def list_snapshots(
        self, tenant: str, *, sandbox_id: str | None, name: str | None, limit: int, cursor: str | None
    ) -> tuple[Sequence[Snapshot], str | None]:
        """Kept snapshots, newest first, and where the next page begins."""
        return await kept.page(
            self._works, tenant, sandbox_id=sandbox_id, name=name, limit=limit, cursor=cursor
        )

    async def get_snapshot(self, tenant: str, reference: str) -> Snapshot:
        """The same. Raises NotFound."""
        row = await self.find_snapshot(tenant, reference)
        if row is None:
            raise NotFound(f"snapshot '{reference[:128]}' not found", code="snapshot_not_found")
        return row

    async def stored_bytes(self, snapshot: Snapshot) -> int:
        """What a snapshot takes on disk now: its size without holes, and less when it is compressed."""
        return await self._works.snapshots.stored_bytes(snapshot.id)

    async def open_snapshot(self, tenant: str, reference: str) -> tuple[Snapshot, MachineImage]:
        """A kept snapshot, by id or name, and its verified files. Raises NotFound."""
        row = await self.get_snapshot(tenant, reference)
        _, image = await self._works.snapshots.load(row.id, digest=row.digest)
        return row, image

    async def delete_snapshot(self, tenant: str, snapshot_id: str) -> None:
        """Delete a kept snapshot, by id or name. Refused while a sandbox or template stands on it."""
        await kept.delete(self._works, tenant, snapshot_id)

    # ── runs

    async def checkpoint(
        self, tenant: str, sandbox_id: str, also: Callable[[Connection, Snapshot], object]
    ) -> Snapshot:
        """Capture a running sandbox for the run that it belongs to, in one transaction with ``also``."""
        owner = self.roster.owner(tenant, sandbox_id)
        return await owner.turn(lambda: capture.take_snapshot(owner, None, kind=snapshots.COMMIT, also=also))

    async def come_back(
        self, tenant: str, snapshot_id: str, spec: SandboxSpec, *, bound: EgressGrant = NO_BOUND
    ) -> Sandbox:
        """A new sandbox that is what a checkpoint was. ``bound`` is as for :meth:`create`."""
        row = await self._works.database.read(lambda conn: snapshots.get(conn, snapshot_id))
        if row is None or row.tenant != tenant:
            raise NotFound(f"snapshot '{snapshot_id}' not found", code="snapshot_not_found")
        spec = replace(spec, isolation=spec.isolation.and_also(self._wanted))
        origin = await self._origins.of_snapshot(row, spec.isolation)
        return await self._make(tenant, origin, settled(spec, None, default=origin.egress, bound=bound))

    # ── builds

    def bench(
        self,
        tenant: str,
        root: RootImage,
        resources: Resources,
        *,
        driver: Driver,
        lifetime_s: int,
        granted: tuple[GrantedHost, ...] = (),
        build_id: str | None = None,
    ) -> AbstractAsyncContextManager[Bench]:
        """An unlisted sandbox for a build of ``tenant``'s, booted from ``root``, killed at the end whatever
        happens, and after ``lifetime_s`` in any case. It may reach the hosts that are ``granted``. With
        ``build_id`` what is captured of it is that build's."""
        source = Source(driver, MachineSpec(root, resources))
        return benches.opened(
            self.roster, tenant, source, lifetime_s=lifetime_s, granted=granted, build_id=build_id
        )

    def thawed_bench(
        self, tenant: str, snapshot: Snapshot, minimum: IsolationLevel | None
    ) -> AbstractAsyncContextManager[Bench]:
        """The same, made from a snapshot so that its files can be looked at, and at least as strong as
        ``minimum``."""
        source = source_of(self._works, snapshot, Wanted(minimum=minimum))
        return benches.opened(self.roster, tenant, source, lifetime_s=RESUME_TIMEOUT_S)

    # ── what happened, and what it cost

    async def metrics(
        self, tenant: str, sandbox_id: str, start_us: int | None, end_us: int | None
    ) -> Sequence[Metric]:
        """Host-side samples in a range, oldest first."""
        self.roster.owner(tenant, sandbox_id)
        return self.roster.sampler.of(sandbox_id).between(start_us, end_us)

    async def events(
        self, tenant: str, sandbox_id: str, *, after_seq: int = 0, limit: int = 1000
    ) -> Sequence[Mapping[str, Any]]:
        """The event log, also of a sandbox that has ended."""
        return await history.events(
            self._works, self.roster, tenant, sandbox_id, after_seq=after_seq, limit=limit
        )

    def record(self, sandbox_id: str, type: str, facts: Mapping[str, Any]) -> None:
        """Add an event to a sandbox's log, for the data plane. Does not block; an unknown id has no log."""
        if (owner := self.roster.owners.get(sandbox_id)) is not None:
            owner.log.append(type, **facts)

    async def usage(self, tenant: str, start_us: int, end_us: int) -> Usage:
        """What a tenant used in [start, end), up to this moment."""
        return await history.usage(self._works, tenant, start_us, end_us)

    # ── volumes

    def mounts_volume(self, volume_id: str) -> bool:
        """Whether some sandbox, running or paused, has a volume mounted."""
        return any(
            mount.volume_id == volume_id
            for owner in self.roster.owners.values()
            for mount in owner.sandbox.spec.volume_mounts
        )

    # ── the data plane

    async def locate(self, sandbox_id: str) -> Sandbox | None:
        """For the data plane, which authenticates with the sandbox's own tokens: any tenant's, or None."""
        owner = self.roster.owners.get(sandbox_id)
        return owner.sandbox if owner is not None and owner.sandbox.state not in HIDDEN else None

    def find_live(self, sandbox_id: str) -> Sandbox | None:
        """For the bridge: a sandbox of anybody's that has not ended, as it is now."""
        owner = self.roster.owners.get(sandbox_id)
        return None if owner is None else owner.sandbox

    async def equip(self, tenant: str) -> None:
        """The grants of a tenant are others now: tell its sandboxes that run what they need for them."""
        mine = [each for each in self.roster.owners.values() if each.sandbox.tenant == tenant]
        await equipping.equip(mine)

    async def locate_by_signature(self, matches: Callable[[str], bool]) -> Sandbox | None:
        """The sandbox whose access token satisfies ``matches(token)`` (signed /files URLs)."""
        for owner in self.roster.owners.values():
            sandbox = owner.sandbox
            if sandbox.state not in HIDDEN and sandbox.access_token and matches(sandbox.access_token):
                return sandbox
        return None

    @asynccontextmanager
    async def guest(self, sandbox_id: str) -> AsyncIterator[Guest]:
        """The guest, awake, for as long as the context lasts: thaws, waits out a transition, auto-resumes
        where the sandbox allows it. Raises NotFound when it is gone or paused without auto-resume."""
        owner = self.roster.owners.get(sandbox_id)
        if owner is None:
            raise not_found(sandbox_id)
        async with owner.use() as guest:
            yield guest


async def _nothing() -> None:
    return None


def _check_isolation(owner: Owner, wanted: Wanted) -> None:
    sandbox = owner.sandbox
    wanted.check(IsolationLevel(sandbox.isolation), f"sandbox {sandbox.id}")


def _check_present(owner: Owner) -> None:
    if owner.sandbox.state in HIDDEN:
        raise not_found(owner.sandbox.id)


def _check_running(owner: Owner) -> None:
    if owner.sandbox.state not in PUBLIC_STATES["running"]:
        raise not_found(owner.sandbox.id)
