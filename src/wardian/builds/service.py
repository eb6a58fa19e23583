"""Builds as a service: asked for, queued, carried out in the background, published in one transaction.

A build is a row from the moment it is asked for. ``waiting``: its files may be uploaded. ``building``: it was
started, and waits for its turn or is under way. ``ready``: its image, its tags and the template's row changed
together; whatever a tag named before is still there under its id. ``error``: with a reason.

A server that stops, in whatever way, leaves its builds as they are; the next one declares them failed, and
removes what they left. What their steps had done so far is in the builder's cache.
"""

from __future__ import annotations

import asyncio
import copy
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

from sqlalchemy import Connection

from wardian.builds import plans
from wardian.builds.builder import Builder
from wardian.builds.comparing import Comparison, Comparisons
from wardian.builds.context import Context
from wardian.builds.logs import LEVELS, BuildLog, BuildLogs
from wardian.builds.uploads import Uploads
from wardian.images.roots import Roots
from wardian.isolation.drivers import Drivers
from wardian.model.build import BuildLine, BuildStatus, Built, Lock, Plan
from wardian.model.errors import Conflict, Forbidden, Invalid, LimitExceeded, NotFound, WardianError
from wardian.model.isolation import Isolation, IsolationLevel, Wanted, strongest_first
from wardian.model.resources import Resources
from wardian.model.template import (
    DEFAULT_TAG,
    Build,
    Edition,
    Failure,
    Reference,
    Template,
    checked_name,
    checked_tag,
)
from wardian.sandboxes.identity import new_id
from wardian.sandboxes.service import Sandboxes
from wardian.sandboxes.templates import Templates, assign, unknown
from wardian.store import builds, snapshots, templates
from wardian.store.clock import now_us
from wardian.store.database import Database

TAGS_MAX = 32
CANCELLED = Failure("the build was cancelled")
STOPPED = Failure("the server was stopped while this was being built; start the build again")
NEVER_STARTED = Failure("the server was stopped before this build was started; ask for a new build")
REASON_LINES = 20
"""How many of the last lines are told with a failure."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Limits:
    """How many builds are carried out at once, wait for their turn, and may be asked for by one tenant."""

    concurrency: int = 2
    queue_max: int = 32  # per tenant, waiting or under way
    templates_max: int = 1000  # per tenant
    host_images: frozenset[str] = frozenset()  # tenants whose plans may name image files of the host


@dataclass(frozen=True, slots=True)
class Files:
    """The uploaded archives that one build copies from, by their digest."""

    places: Mapping[str, Path] = field(default_factory=dict)

    def path(self, digest: str) -> Path:
        if (place := self.places.get(digest)) is None or not place.exists():
            raise NotFound(f"the files {digest[:12]}… were not uploaded", code="files_missing")
        return place


@dataclass(frozen=True, slots=True)
class House:
    """What builds need of the rest of the server."""

    database: Database
    templates: Templates
    sandboxes: Sandboxes
    roots: Roots
    builder: Builder
    drivers: Drivers
    fence: Callable[[Connection], None]  # raises when another server holds the node
    now_us: Callable[[], int] = now_us


class Builds:
    """The builds of one node. :meth:`open` before use, :meth:`close` after."""

    def __init__(self, house: House, directory: Path, limits: Limits | None = None) -> None:
        self._house = house
        self._limits = limits or Limits()
        self.uploads = Uploads(directory / "files")
        self._logs = BuildLogs(directory / "logs")
        self._comparisons = Comparisons()
        self._collecting = asyncio.Lock()
        self._slots = asyncio.Semaphore(self._limits.concurrency)
        self._jobs: dict[str, asyncio.Task[None]] = {}
        self._tenants: dict[str, str] = {}  # of the jobs
        self._wanted = Wanted()

    def within(self, wanted: Wanted) -> Builds:
        """The same builds, for somebody whose builds run in the isolation ``wanted``."""
        bound = copy.copy(self)
        bound._wanted = wanted
        return bound

    async def open(self) -> None:
        """Declare failed what an earlier server left undone, and remove what nobody refers to."""
        now = self._house.now_us()

        def write(conn: Connection) -> tuple[frozenset[str], frozenset[str], Sequence[str]]:
            self._house.fence(conn)
            for build in builds.unfinished(conn):
                why = NEVER_STARTED if build.status is BuildStatus.WAITING else STOPPED
                builds.replace(conn, _failed(build, why, now))
            strays = snapshots.unused_warmth(conn)
            for stray in strays:
                snapshots.remove(conn, stray)
            return builds.all_ids(conn), templates.all_ids(conn), strays

        build_ids, template_ids, strays = await self._house.templates.write(write)
        await self._house.sandboxes.drop_snapshots(strays)
        await asyncio.to_thread(self._logs.collect, build_ids)
        await asyncio.to_thread(self.uploads.collect, template_ids)
        await asyncio.to_thread(self._house.builder.tidy)
        await self._collect_roots()

    async def close(self) -> None:
        """Stop every build where it stands."""
        jobs = list(self._jobs.values())
        for job in jobs:
            job.cancel()
        await asyncio.gather(*jobs, return_exceptions=True)
        for build_id in list(self._jobs):
            self._logs.end(build_id)

    # ── asking for a build

    async def request(
        self,
        tenant: str,
        name: str,
        *,
        tags: Sequence[str] = (),
        resources: Resources | None = None,
        house: bool = False,
    ) -> tuple[Template, Build]:
        """A new build of the tenant's template called ``name`` (``[namespace/]alias[:tag]``, or its id).

        The template is made if it is not there. Its tags are moved when the build is ready. With ``house``
        it is the house's template of that name, which only its operator may build.
        """
        asked = checked_name(name)
        wanted = [checked_tag(tag) for tag in tags]
        if ":" in name:
            wanted.insert(0, asked.tag)
        if len(wanted) > TAGS_MAX:
            raise Invalid(f"more than {TAGS_MAX} tags", code="too_many_tags")
        if asked.namespace not in (None, tenant):
            raise Forbidden(f"the namespace '{asked.namespace}' is not yours", code="namespace_not_yours")
        now = self._house.now_us()

        def write(conn: Connection) -> tuple[Template, Build]:
            self._house.fence(conn)
            template = self._template_to_build(conn, tenant, asked.name, house=house)
            if template is None:
                template = self._new_template(conn, None if house else tenant, asked.name, now)
            build = Build(
                id=str(uuid4()),
                template_id=template.id,
                status=BuildStatus.WAITING,
                resources=resources or Resources(),
                created_at=now,
                updated_at=now,
                tags=tuple(dict.fromkeys(wanted)) or (DEFAULT_TAG,),
            )
            builds.add(conn, build)
            return template, build

        return await self._house.templates.write(write)

    def _template_to_build(self, conn: Connection, tenant: str, name: str, *, house: bool) -> Template | None:
        if house:
            return self._house.templates.own_of_house(conn, tenant, name)
        template = templates.find(conn, tenant, Reference(name, tenant))
        return template if template is not None and template.tenant == tenant else None

    def _new_template(self, conn: Connection, tenant: str | None, alias: str, now: int) -> Template:
        if templates.count(conn, tenant) >= self._limits.templates_max:
            raise LimitExceeded(
                f"you have {self._limits.templates_max} templates, which is the limit",
                hint="delete some, then try again",
            )
        template = Template(new_id("t"), alias, tenant, created_at=now, updated_at=now, public=tenant is None)
        templates.add(conn, template)
        return template

    async def files(
        self, tenant: str, reference: str, names: Mapping[str, str]
    ) -> tuple[Files, Mapping[str, str]]:
        """The uploaded archives called ``names`` (and what each is shown as), and the digest of each.

        Raises :class:`Invalid` for one that was not uploaded.
        """
        template = await self.own(tenant, reference)
        places: dict[str, Path] = {}
        digests: dict[str, str] = {}
        for name, shown in names.items():
            found = await asyncio.to_thread(self.uploads.find, template.id, name)
            if found is None:
                raise Invalid(f"the files of '{shown}' were not uploaded", code="files_missing")
            digests[name] = found[0]
            places[found[0]] = found[1]
        return Files(places), digests

    # ── carrying one out

    async def start(
        self,
        tenant: str,
        reference: str,
        build_id: str,
        plan: Plan,
        context: Context,
        *,
        lock: Lock | None = None,
    ) -> Build:
        """Start a build that waits; it is ``building`` when this returns. Each can be started once.

        Refused when this host does not have the isolation it is to run in, or that is weaker than what a
        template says that it is built upon: in any of its stages, for all run in the one isolation.
        """
        wanted = Wanted(plan.isolation).and_also(self._wanted)
        for isolation in await self._isolations_below(tenant, plan):
            wanted = wanted.upon(isolation)
        self._house.drivers.choose(wanted)
        plan = replace(plan, isolation=wanted.asked)
        if plans.reads_the_host(plan) and tenant not in self._limits.host_images:
            raise Forbidden("only this server's operator may build from files of its host", code="host_image")
        if sum(1 for owner in self._tenants.values() if owner == tenant) >= self._limits.queue_max:
            raise LimitExceeded(f"you have {self._limits.queue_max} builds under way, which is the limit")
        now = self._house.now_us()

        def write(conn: Connection) -> Build:
            self._house.fence(conn)
            build = self._find(conn, tenant, reference, build_id)
            if build.status is not BuildStatus.WAITING:
                raise Invalid(
                    f"build '{build_id}' is not waiting to be started: it is {build.status}",
                    code="build_not_waiting",
                )
            started = replace(
                build,
                status=BuildStatus.BUILDING,
                updated_at=now,
                plan=plans.kept(plan),
                resources=build.resources,
                isolation=plan.isolation,
            )
            builds.replace(conn, started)
            return started

        build = await self._house.templates.write(write)
        log = await asyncio.to_thread(self._logs.begin, build.id)
        plan = replace(plan, resources=build.resources)
        work = self._carry_out(tenant, build, plan, context, lock, log, wanted.minimum)
        self._tenants[build.id] = tenant
        self._jobs[build.id] = asyncio.create_task(work, name=f"build {build.id}")
        return build

    async def _isolations_below(self, tenant: str, plan: Plan) -> Sequence[Isolation]:
        """What the templates say that the plan builds upon; the strongest first, which is handed on."""
        found = [await self._house.templates.find(tenant, each) for each in plans.templates_below(plan)]
        said = {base.build.isolation for base in found if base is not None and base.build.isolation}
        return strongest_first(said)

    async def _carry_out(
        self,
        tenant: str,
        build: Build,
        plan: Plan,
        context: Context,
        lock: Lock | None,
        log: BuildLog,
        minimum: IsolationLevel | None,
    ) -> None:
        """A build from its turn in the queue to its end, whatever that is."""
        try:
            async with self._slots:
                built = await self._house.builder.build(
                    plan, tenant=tenant, context=context, log=log.add, lock=lock, minimum=minimum
                )
                await self._publish(build, built, log)
        except WardianError as error:
            await self._fail(build, Failure(str(error), _step_of(error)), log)
        except Exception as error:
            _log.exception("build %s failed", build.id)
            await self._fail(build, Failure(f"internal error: {type(error).__name__}"), log)
        finally:
            self._logs.end(build.id)
            self._jobs.pop(build.id, None)
            self._tenants.pop(build.id, None)

    async def _publish(self, build: Build, built: Built, log: BuildLog) -> None:
        """Make the build ready: it, its tags and its template at once."""
        now = self._house.now_us()
        done = replace(
            build,
            status=BuildStatus.READY,
            updated_at=now,
            finished_at=now,
            resources=built.resources,
            root_digest=built.root_digest,
            tree=built.lock.tree,
            snapshot_id=built.snapshot_id,
            surroundings=built.surroundings,
            start=built.start,
            ready=built.ready,
            lock=built.lock,
        )
        self._say(log, "info", f"build finished: {done.tree}")

        def write(conn: Connection) -> None:
            self._house.fence(conn)
            builds.replace(conn, done)
            assign(conn, done, done.tags, now)
            templates.change(conn, done.template_id, {"updated_at": now})

        await self._house.templates.write(write)
        await self._house.sandboxes.keep_house_warm()

    async def _fail(self, build: Build, failure: Failure, log: BuildLog) -> None:
        self._say(log, "error", failure.message)
        failed = _failed(build, failure, self._house.now_us())

        def write(conn: Connection) -> None:
            self._house.fence(conn)
            builds.replace(conn, failed)

        await self._house.templates.write(write)

    def _say(self, log: BuildLog, level: str, message: str) -> None:
        log.add(BuildLine(self._house.now_us(), level, message))

    async def cancel(self, tenant: str, reference: str, build_id: str) -> None:
        """End a build that waits or is under way. Raises Conflict for one that is over."""
        build = await self.status(tenant, reference, build_id)
        job = self._jobs.get(build.id)
        if job is not None:
            job.cancel()
            await asyncio.gather(job, return_exceptions=True)
        failed = _failed(build, CANCELLED, self._house.now_us())

        def write(conn: Connection) -> None:
            self._house.fence(conn)
            current = self._find(conn, tenant, reference, build_id)
            if current.status not in (BuildStatus.WAITING, BuildStatus.BUILDING):
                raise Conflict(f"build '{build_id}' is over: it is {current.status}", code="build_is_over")
            builds.replace(conn, failed)

        await self._house.templates.write(write)

    async def settled(self, build_id: str) -> None:
        """Return when a build is no longer under way."""
        if (job := self._jobs.get(build_id)) is not None:
            await asyncio.wait({job})

    # ── looking at one

    async def status(self, tenant: str, reference: str, build_id: str) -> Build:
        """A build of one of the tenant's own templates. Raises NotFound."""
        return await self._house.database.read(lambda conn: self._find(conn, tenant, reference, build_id))

    async def own(self, tenant: str, reference: str) -> Template:
        """A template the tenant may build. Raises NotFound or Forbidden."""
        return await self._house.database.read(
            lambda conn: self._house.templates.own(conn, tenant, reference)
        )

    def _find(self, conn: Connection, tenant: str, reference: str, build_id: str) -> Build:
        template = self._house.templates.own(conn, tenant, reference)
        build = builds.get(conn, build_id)
        if build is None or build.template_id != template.id:
            raise NotFound(f"build '{build_id[:64]}' not found", code="build_not_found")
        return build

    async def lines(self, build: Build, *, level: str | None = None) -> Sequence[BuildLine]:
        """What a build said, oldest first; of ``level`` and above, if one is given."""
        lines = await asyncio.to_thread(self._logs.read, build.id)
        if level is None:
            return lines
        least = LEVELS.index(level)
        return [line for line in lines if LEVELS.index(line.level) >= least]

    async def compare(self, tenant: str, old: str, new: str) -> tuple[tuple[Edition, Edition], Comparison]:
        """What is different in the files of two builds that the tenant may use. Raises NotFound."""
        found = [await self._house.templates.find(tenant, reference) for reference in (old, new)]
        for edition, reference in zip(found, (old, new), strict=True):
            if edition is None:
                raise unknown(reference)
        before, after = (edition for edition in found if edition is not None)
        roots = [self._house.roots.find(edition.build.root_digest) for edition in (before, after)]
        return (before, after), await self._comparisons.of(*roots)

    # ── deleting

    async def remove_template(self, tenant: str, reference: str) -> None:
        """Delete a template with all of its builds. Refused while it is in use, or being built."""
        template = await self.own(tenant, reference)
        gone, warmth = await self._house.templates.remove(tenant, reference)
        await self._house.sandboxes.forget_builds(gone, warmth)
        await asyncio.to_thread(self.uploads.remove, template.id)
        for build in gone:
            await asyncio.to_thread(self._logs.remove, build.id)
        if not self._jobs:
            await self._collect_roots()

    async def _collect_roots(self) -> None:
        """Remove the root images that nothing stands on. No build goes on meanwhile: it may be about to."""
        async with self._collecting, AsyncExitStack() as stack:
            for _ in range(self._limits.concurrency):
                await stack.enter_async_context(self._slots)
            used = await self._house.database.read(templates.roots_in_use)
            await asyncio.to_thread(self._house.roots.collect, used)


def _failed(build: Build, failure: Failure, now: int) -> Build:
    return replace(build, status=BuildStatus.ERROR, updated_at=now, finished_at=now, failure=failure)


def _step_of(error: WardianError) -> str:
    """Which step failed, as E2B counts them: from 1."""
    place: Any = getattr(error, "place", "")
    return str(place).partition("/")[0]
