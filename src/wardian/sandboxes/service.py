"""The verbs on sandboxes, as every front door (E2B API, CLI, later runs) calls them.

Each verb takes the tenant first: an id of another tenant is answered exactly like an id that does not exist.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from sqlalchemy import Connection

from wardian.guest.guest import Guest
from wardian.isolation.port import MachineImage, MachineSpec, RootImage
from wardian.meter import intervals as meter
from wardian.model.egress import Egress, GrantedHost
from wardian.model.errors import Invalid, LimitExceeded, NotFound, WardianError
from wardian.model.resources import Resources
from wardian.model.sandbox import EndReason, OnTimeout, Sandbox, SandboxSpec, Snapshot, State
from wardian.model.template import Build
from wardian.model.usage import Usage
from wardian.sandboxes import benches, cursors
from wardian.sandboxes.acts import capture, create, pause, resume
from wardian.sandboxes.acts import end as ending
from wardian.sandboxes.alarms import Alarms
from wardian.sandboxes.benches import Bench
from wardian.sandboxes.machines import source_of
from wardian.sandboxes.origins import Origin, Origins, insert, new_sandbox
from wardian.sandboxes.owner import Hooks, Owner, not_found
from wardian.sandboxes.pool import Source
from wardian.sandboxes.reconciler import Outcome, reconcile
from wardian.sandboxes.sampler import Metric, Sampler
from wardian.sandboxes.templates import Templates
from wardian.sandboxes.workshop import Workshop
from wardian.store import sandboxes, snapshots

__all__ = ["ListQuery", "Metric", "Page", "Sandboxes"]

RESUME_TIMEOUT_S = 300  # where traffic or a caller resumes without saying for how long
CLOSE_PATIENCE_S = 10.0

_PUBLIC_STATES: Mapping[str, frozenset[State]] = {
    "running": frozenset({State.RUNNING, State.FROZEN, State.SNAPSHOTTING, State.PAUSING}),
    "paused": frozenset({State.PAUSED, State.RESUMING}),
}
_HIDDEN = frozenset({State.CREATING, State.KILLING, State.ENDED})

_EXPIRING = frozenset({State.RUNNING, State.FROZEN})

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ListQuery:
    """Filters of a listing; all must match. ``states`` are public states (running, paused)."""

    states: frozenset[str] = frozenset({"running", "paused"})
    metadata: Mapping[str, str] = field(default_factory=dict)
    template: str | None = None
    started_after_us: int | None = None  # inclusive at whole seconds, as the E2B protocol wants
    ascending: bool = False
    limit: int = 100
    cursor: str | None = None


@dataclass(frozen=True, slots=True)
class Page:
    items: tuple[Sandbox, ...]
    next_cursor: str | None
    total_running: int


class Sandboxes:
    """The sandboxes of one node. :meth:`start` before use, :meth:`close` after; machines outlive both."""

    def __init__(self, works: Workshop, templates: Templates) -> None:
        self._works = works
        self._templates = templates
        self._origins = Origins(works, templates)
        self._owners: dict[str, Owner] = {}
        self._hooks = Hooks(changed=self._changed, resume=self._resume_on_traffic, lost=ending.end)
        self._alarms = Alarms(self._ring, now_us=works.now_us)
        self._sampler = Sampler(
            self._owners.values, every_s=works.options.sample_every_s, now_us=works.now_us
        )

    async def start(self) -> Outcome:
        """Reconcile what an earlier server left, then begin to fill the pools."""
        works = self._works
        left = await works.database.read(lambda conn: sandboxes.not_ended(conn, works.lease.node_id))
        for sandbox in left:
            self._owners[sandbox.id] = Owner(works, sandbox, self._hooks)
        outcome = await reconcile(works, dict(self._owners))
        await self._clear_benches()
        for owner in list(self._owners.values()):
            self._changed(owner)
        for edition in await self._templates.house():
            works.pool.keep_warm((await self._origins.of_template(edition)).source)
        works.pool.start()
        self._sampler.start()
        return outcome

    async def close(self) -> None:
        """Let what was begun finish, destroy the pools, and let go. Sandboxes go on running."""
        self._alarms.close()
        await self._sampler.close()
        await asyncio.gather(*(owner.close(CLOSE_PATIENCE_S) for owner in self._owners.values()))
        await self._works.pool.close()

    # ── create, get, list

    async def create(self, tenant: str, spec: SandboxSpec) -> Sandbox:
        """A new sandbox, running. With an idempotency key used before, the sandbox that use made."""
        self._check_timeout(spec.timeout_s)
        origin = await self._origins.find(tenant, spec.template)
        reservation = self._works.pool.reserve(origin.source)
        made = False
        try:
            owner, made = await self._add(tenant, origin, spec)
        finally:
            if not made and reservation is not None:
                await asyncio.shield(self._works.pool.release(reservation))
        if made:
            await owner.turn(lambda: create.create(owner, origin.source, reservation))
        else:
            await owner.turn(_nothing)  # whoever is making it finishes first
            self._check_present(owner)
        return owner.sandbox

    async def _add(self, tenant: str, origin: Origin, spec: SandboxSpec) -> tuple[Owner, bool]:
        """Write the row and intent of a new sandbox. False: its idempotency key names one that is there."""
        works = self._works
        sandbox = new_sandbox(works, tenant, origin, spec)
        owner = Owner(works, sandbox, self._hooks)

        def transaction(conn: Connection) -> Sandbox | None:
            works.lease.fence(conn)
            if spec.idempotency_key is not None:
                found = sandboxes.find_by_idempotency_key(conn, tenant, spec.idempotency_key)
                if found is not None:
                    return found
            self._check_quota(conn, tenant)
            insert(conn, sandbox, node_id=works.lease.node_id)
            return None

        self._owners[sandbox.id] = owner
        try:
            found = await works.database.write(transaction)
        except BaseException:
            self._owners.pop(sandbox.id, None)
            raise
        if found is not None:
            del self._owners[sandbox.id]
            if (maker := self._owners.get(found.id)) is None:
                raise not_found(found.id)
            return maker, False  # perhaps still being created
        _log_creation(owner)
        return owner, True

    def _check_quota(self, conn: Connection, tenant: str) -> None:
        most = self._works.options.sandboxes_max
        if sandboxes.count(conn, tenant, set(State) - {State.ENDED}) >= most:
            raise LimitExceeded(
                f"you have {most} sandboxes, which is the limit", hint="kill some, then try again"
            )

    async def get(self, tenant: str, sandbox_id: str) -> Sandbox:
        return self._owner(tenant, sandbox_id).sandbox

    async def list(self, tenant: str, query: ListQuery) -> Page:
        """A page by start time, newest first unless asked otherwise."""
        after = cursors.decode(query.cursor)
        states = frozenset[State]().union(*(_PUBLIC_STATES[name] for name in query.states))
        template = await self._template_of(tenant, query.template)

        def transaction(conn: Connection) -> tuple[Sequence[Sandbox], int]:
            found = sandboxes.page(
                conn,
                tenant,
                states=states,
                metadata=query.metadata,
                template=template,
                started_from=query.started_after_us,
                after=after,
                ascending=query.ascending,
                limit=query.limit + 1,
            )
            return found, sandboxes.count(conn, tenant, _PUBLIC_STATES["running"])

        found, running = await self._works.database.read(transaction)
        items = tuple(found[: query.limit])
        more = len(found) > query.limit
        return Page(items, cursors.encode(items[-1].started_at, items[-1].id) if more else None, running)

    async def _template_of(self, tenant: str, reference: str | None) -> str | None:
        """What to look for in the rows of sandboxes for a template, build or snapshot that was named."""
        if reference is None:
            return None
        edition = await self._templates.find(tenant, reference)
        if edition is None:
            return reference
        by_build = reference == edition.build.id or ":" in reference
        return edition.build.id if by_build else edition.template.id

    async def forget_builds(self, builds: Sequence[Build]) -> None:
        """Let go of what stood on builds that are gone: machines that waited, warm snapshots."""
        for build in builds:
            self._origins.forget(build.id)
            await self._works.pool.drop(build.id)
        await self.drop_snapshots([build.snapshot_id for build in builds if build.snapshot_id is not None])

    async def drop_snapshots(self, snapshot_ids: Sequence[str]) -> None:
        """Remove the files of snapshots whose rows are gone."""
        for snapshot_id in snapshot_ids:
            await self._works.snapshots.remove(snapshot_id)

    # ── time

    async def set_timeout(self, tenant: str, sandbox_id: str, timeout_s: int) -> Sandbox:
        """Let a running sandbox's time be up in ``timeout_s`` from now; 0 is at once."""
        if timeout_s:
            self._check_timeout(timeout_s)
        owner = self._owner(tenant, sandbox_id)

        async def command() -> None:
            _check_running(owner)
            await owner.change(end_at=self._works.now_us() + timeout_s * 1_000_000)

        await owner.turn(command)
        return owner.sandbox

    async def refresh(self, tenant: str, sandbox_id: str, duration_s: int) -> Sandbox:
        """Keep a running sandbox for at least ``duration_s`` from now."""
        owner = self._owner(tenant, sandbox_id)
        await owner.turn(lambda: self._extend(owner, duration_s))
        return owner.sandbox

    async def _extend(self, owner: Owner, timeout_s: int) -> None:
        _check_running(owner)
        end_at = self._works.now_us() + timeout_s * 1_000_000
        if end_at > owner.sandbox.end_at:
            await owner.change(end_at=end_at)

    async def connect(self, tenant: str, sandbox_id: str, timeout_s: int | None) -> tuple[Sandbox, bool]:
        """Extend a running sandbox (never shorten) or resume a paused one. The flag says it was resumed."""
        if timeout_s is not None:
            self._check_timeout(timeout_s)
        owner = self._owner(tenant, sandbox_id)

        async def command() -> bool:
            if owner.sandbox.state is State.PAUSED:
                await resume.resume(owner, RESUME_TIMEOUT_S if timeout_s is None else timeout_s)
                return True
            if timeout_s is not None:
                await self._extend(owner, timeout_s)
            return False

        resumed = await owner.turn(command)
        self._check_present(owner)
        return owner.sandbox, resumed

    def _ring(self, sandbox_id: str) -> None:
        if (owner := self._owners.get(sandbox_id)) is not None:
            owner.soon(lambda: self._expire(owner))

    async def _expire(self, owner: Owner) -> None:
        sandbox = owner.sandbox
        if sandbox.state not in _EXPIRING or sandbox.end_at > self._works.now_us():
            return
        if sandbox.spec.on_timeout is OnTimeout.KILL:
            await ending.end(owner, EndReason.EXPIRED)
            return
        try:
            await pause.pause(owner)
        except WardianError as error:
            # Killing it would lose what its owner asked to keep. It goes on, and is tried again.
            owner.log.append("sandbox.pause_retry", detail=str(error))
            retry_us = int(self._works.options.pause_retry_s * 1e6)
            await owner.change(end_at=self._works.now_us() + retry_us)
            raise

    # ── network

    async def set_network(
        self, tenant: str, sandbox_id: str, *, egress: Egress, allow_internet: bool
    ) -> Sandbox:
        """Replace the rules of what may leave a sandbox, running or paused. New connections follow them at
        once; those under way that they forbid are cut."""
        owner = self._owner(tenant, sandbox_id)

        async def command() -> None:
            owner.check_present()
            spec = replace(owner.sandbox.spec, egress=egress, allow_internet=allow_internet)
            await owner.change(spec=spec)
            self._works.outbound.changed(owner.sandbox)
            _log_network(owner)

        await owner.turn(command)
        return owner.sandbox

    # ── pause, resume, kill

    async def pause(self, tenant: str, sandbox_id: str) -> Sandbox:
        """Memory and disk to a snapshot, machine gone. Survives a power cut once it returns."""
        owner = self._owner(tenant, sandbox_id)
        await owner.turn(lambda: pause.pause(owner))
        return owner.sandbox

    async def resume(self, tenant: str, sandbox_id: str, timeout_s: int | None) -> Sandbox:
        """A paused sandbox runs again, every process where it was. A failure leaves it paused and intact."""
        if timeout_s is not None:
            self._check_timeout(timeout_s)
        owner = self._owner(tenant, sandbox_id)
        await owner.turn(lambda: resume.resume(owner, RESUME_TIMEOUT_S if timeout_s is None else timeout_s))
        return owner.sandbox

    async def _resume_on_traffic(self, owner: Owner) -> None:
        await resume.resume(owner, max(RESUME_TIMEOUT_S, owner.sandbox.spec.timeout_s))

    async def kill(self, tenant: str, sandbox_id: str) -> None:
        """End a sandbox, running or paused."""
        owner = self._owner(tenant, sandbox_id)
        await owner.turn(lambda: ending.end(owner, EndReason.KILLED))

    # ── fork and snapshots

    async def fork(
        self, tenant: str, sandbox_id: str, *, count: int, timeout_s: int | None
    ) -> Sequence[Sandbox | WardianError]:
        """``count`` clones of a running sandbox, which goes on. Each succeeds or fails by itself."""
        if not 1 <= count <= self._works.options.fork_max:
            raise Invalid(f"count must be between 1 and {self._works.options.fork_max}", code="bad_count")
        if timeout_s is not None:
            self._check_timeout(timeout_s)
        parent = self._owner(tenant, sandbox_id)
        async with self._works.snapshots.scratch() as directory:
            image = await parent.turn(lambda: capture.capture_for_fork(parent, directory))
            return await asyncio.gather(
                *(self._fork_one(parent.sandbox, image, timeout_s) for _ in range(count))
            )

    async def _fork_one(
        self, parent: Sandbox, image: MachineImage, timeout_s: int | None
    ) -> Sandbox | WardianError:
        origin = self._origins.of_fork(parent, image)
        asked = replace(
            parent.spec,
            timeout_s=parent.spec.timeout_s if timeout_s is None else timeout_s,
            idempotency_key=None,
            granted_hosts=(),  # granted to the parent, and to nobody that comes after it
        )
        try:
            owner, _ = await self._add(parent.tenant, origin, asked)
            await owner.turn(lambda: create.create(owner, origin.source))
        except WardianError as error:
            return error
        except OSError as error:
            _log.exception("a fork of sandbox %s failed", parent.id)
            return WardianError(f"the fork failed: {error}")
        return owner.sandbox

    async def snapshot(self, tenant: str, sandbox_id: str, *, name: str | None) -> Snapshot:
        """A snapshot of a running sandbox, kept until deleted; sandboxes can be created from it."""
        owner = self._owner(tenant, sandbox_id)
        return await owner.turn(lambda: capture.take_snapshot(owner, name))

    async def list_snapshots(
        self, tenant: str, *, sandbox_id: str | None, name: str | None, limit: int, cursor: str | None
    ) -> tuple[Sequence[Snapshot], str | None]:
        """Kept snapshots, newest first, and where the next page begins."""
        after = cursors.decode(cursor)
        found = await self._works.database.read(
            lambda conn: snapshots.page(
                conn, tenant, sandbox_id=sandbox_id, name=name, after=after, limit=limit + 1
            )
        )
        items = found[:limit]
        return items, cursors.encode(items[-1].created_at, items[-1].id) if len(found) > limit else None

    async def delete_snapshot(self, tenant: str, snapshot_id: str) -> None:
        """Delete a kept snapshot, by id or name. Refused while a sandbox or template stands on it."""

        def transaction(conn: Connection) -> str:
            self._works.lease.fence(conn)
            row = snapshots.find(conn, tenant, snapshot_id)
            if row is None:
                raise NotFound(f"snapshot '{snapshot_id}' not found", code="snapshot_not_found")
            if sandboxes.using_snapshot(conn, row.id) or snapshots.builds_using(conn, row.id):
                raise Invalid(
                    f"snapshot '{snapshot_id}' is in use",
                    code="snapshot_in_use",
                    hint="kill the sandboxes made from it first",
                )
            snapshots.remove(conn, row.id)
            return row.id

        await self._works.snapshots.remove(await self._works.database.write(transaction, durable=True))

    # ── builds

    @asynccontextmanager
    async def bench(
        self,
        tenant: str,
        root: RootImage,
        resources: Resources,
        *,
        lifetime_s: int,
        granted: tuple[GrantedHost, ...] = (),
    ) -> AsyncIterator[Bench]:
        """An unlisted sandbox for a build of ``tenant``'s, booted from ``root``, killed at the end whatever
        happens, and after ``lifetime_s`` in any case. It may reach the hosts that are ``granted``."""
        source = Source(MachineSpec(root, resources))
        async with self._bench(tenant, source, lifetime_s, granted) as bench:
            yield bench

    @asynccontextmanager
    async def thawed_bench(self, tenant: str, snapshot: Snapshot) -> AsyncIterator[Bench]:
        """The same, restored from a snapshot, so that its files can be looked at."""
        async with self._bench(tenant, source_of(self._works, snapshot), RESUME_TIMEOUT_S) as bench:
            yield bench

    @asynccontextmanager
    async def _bench(
        self, tenant: str, source: Source, lifetime_s: int, granted: tuple[GrantedHost, ...] = ()
    ) -> AsyncIterator[Bench]:
        origin = Origin(benches.TEMPLATE, None, source)
        spec = SandboxSpec(template=benches.TEMPLATE, timeout_s=lifetime_s, granted_hosts=granted)
        owner, _ = await self._add(benches.bench_tenant(tenant), origin, spec)
        try:
            await owner.turn(lambda: create.create(owner, source))
            async with owner.use() as guest:
                yield Bench(owner, guest)
        finally:
            await asyncio.shield(asyncio.ensure_future(self._clear_bench(owner)))

    async def find_snapshot(self, tenant: str, reference: str) -> Snapshot | None:
        """A kept snapshot of the tenant's, by id or name."""
        return await self._works.database.read(lambda conn: snapshots.find(conn, tenant, reference))

    async def _clear_bench(self, owner: Owner) -> None:
        if owner.sandbox.state is not State.ENDED:
            await owner.turn(lambda: _end_if_there(owner))

    async def _clear_benches(self) -> None:
        """End what builds of an earlier server left: nobody is waiting for it."""
        left = [owner for owner in self._owners.values() if benches.is_bench(owner.sandbox)]
        await asyncio.gather(*(self._clear_bench(owner) for owner in left))

    # ── what happened, and what it cost

    async def metrics(
        self, tenant: str, sandbox_id: str, start_us: int | None, end_us: int | None
    ) -> Sequence[Metric]:
        """Host-side samples in a range, oldest first."""
        self._owner(tenant, sandbox_id)
        return self._sampler.of(sandbox_id).between(start_us, end_us)

    async def events(
        self, tenant: str, sandbox_id: str, *, after_seq: int = 0, limit: int = 1000
    ) -> Sequence[Mapping[str, Any]]:
        """The event log, also of a sandbox that has ended."""
        owner = self._owners.get(sandbox_id)
        if owner is None or owner.sandbox.tenant != tenant:
            found = await self._works.database.read(lambda conn: sandboxes.find(conn, tenant, sandbox_id))
            if found is None:
                raise not_found(sandbox_id)
            return await asyncio.to_thread(self._read_ended, sandbox_id, after_seq, limit)
        return owner.log.read(after_seq=after_seq, limit=limit)

    def _read_ended(self, sandbox_id: str, after_seq: int, limit: int) -> Sequence[Mapping[str, Any]]:
        log = self._works.recorder.log(sandbox_id)
        try:
            return log.read(after_seq=after_seq, limit=limit)
        finally:
            log.release()

    def record(self, sandbox_id: str, type: str, facts: Mapping[str, Any]) -> None:
        """Add an event to a sandbox's log, for the data plane. Does not block; an unknown id has no log."""
        if (owner := self._owners.get(sandbox_id)) is not None:
            owner.log.append(type, **facts)

    async def usage(self, tenant: str, start_us: int, end_us: int) -> Usage:
        """What a tenant used in [start, end), up to this moment."""
        now = self._works.now_us()
        return await self._works.database.read(
            lambda conn: meter.usage(conn, tenant, start=start_us, end=end_us, now=now)
        )

    # ── the data plane

    async def locate(self, sandbox_id: str) -> Sandbox | None:
        """For the data plane, which authenticates with the sandbox's own tokens: any tenant's, or None."""
        owner = self._owners.get(sandbox_id)
        return owner.sandbox if owner is not None and owner.sandbox.state not in _HIDDEN else None

    async def locate_by_signature(self, matches: Callable[[str], bool]) -> Sandbox | None:
        """The sandbox whose access token satisfies ``matches(token)`` (signed /files URLs)."""
        for owner in list(self._owners.values()):
            sandbox = owner.sandbox
            if sandbox.state not in _HIDDEN and sandbox.access_token and matches(sandbox.access_token):
                return sandbox
        return None

    @asynccontextmanager
    async def guest(self, sandbox_id: str) -> AsyncIterator[Guest]:
        """The guest, awake, for as long as the context lasts: thaws, waits out a transition, auto-resumes
        where the sandbox allows it. Raises NotFound when it is gone or paused without auto-resume."""
        owner = self._owners.get(sandbox_id)
        if owner is None:
            raise not_found(sandbox_id)
        async with owner.use() as guest:
            yield guest

    # ── owners

    def _owner(self, tenant: str, sandbox_id: str) -> Owner:
        owner = self._owners.get(sandbox_id)
        if owner is None or owner.sandbox.tenant != tenant or owner.sandbox.state in _HIDDEN:
            raise not_found(sandbox_id)
        return owner

    def _check_present(self, owner: Owner) -> None:
        if owner.sandbox.state in _HIDDEN:
            raise not_found(owner.sandbox.id)

    def _check_timeout(self, timeout_s: int) -> None:
        most = self._works.options.timeout_max_s
        if timeout_s <= 0:
            raise Invalid("Timeout must be greater than 0", code="bad_timeout")
        if timeout_s > most:
            raise Invalid(f"Timeout cannot be greater than {most / 3600:g} hours", code="bad_timeout")

    def _changed(self, owner: Owner) -> None:
        """Follow an owner's change: its alarm, and whether it is still anybody's."""
        sandbox = owner.sandbox
        if sandbox.state is State.ENDED:
            self._owners.pop(sandbox.id, None)
            self._sampler.forget(sandbox.id)
            self._works.outbound.forget(sandbox.id)
        if sandbox.state in _EXPIRING:
            self._alarms.set(sandbox.id, sandbox.end_at)
        elif sandbox.state in (State.PAUSED, State.ENDED):
            self._alarms.clear(sandbox.id)


async def _nothing() -> None:
    return None


async def _end_if_there(owner: Owner) -> None:
    if owner.sandbox.state is not State.ENDED:
        await ending.end(owner, EndReason.KILLED)


def _check_running(owner: Owner) -> None:
    if owner.sandbox.state not in _PUBLIC_STATES["running"]:
        raise not_found(owner.sandbox.id)


def _log_creation(owner: Owner) -> None:
    sandbox = owner.sandbox
    owner.log.append(
        "sandbox.create",
        tenant=sandbox.tenant,
        template=sandbox.template_id,
        build=sandbox.build_id,
        tree=sandbox.tree,
        root=sandbox.template_digest,
        isolation=sandbox.isolation,
        parent=sandbox.parent_id,
        timeout_s=sandbox.spec.timeout_s,
        env_names=sorted(sandbox.spec.env),
    )
    if sandbox.spec.egress != Egress() or not sandbox.spec.allow_internet:
        _log_network(owner)


def _log_network(owner: Owner) -> None:
    """The rules as they are now, without anything secret."""
    spec = owner.sandbox.spec
    egress, proxy = spec.egress, spec.egress.proxy
    owner.log.append(
        "sandbox.network",
        internet=spec.allow_internet,
        allow=list(egress.allow),
        deny=list(egress.deny),
        dns_servers=None if egress.dns_servers is None else list(egress.dns_servers),
        proxy=None if proxy is None else proxy.address,
    )
