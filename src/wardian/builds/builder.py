"""The builder: carries a Plan out, from its bases to a template that is running and warm.

Nothing of a plan runs on the host. Each stage's steps run in a bench, a sandbox of the building tenant's that
nobody else sees; what they wrote comes out as layers, which the host checks strictly and composes into one
root image. What is to be started is started in a machine of exactly that image, and captured.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from wardian.builds import lent, plans, stages, warm
from wardian.builds import lock as locks
from wardian.builds.cache import LayerCache
from wardian.builds.context import Context, digest_in
from wardian.builds.equipping import equipped
from wardian.builds.errors import BuildFailed, describe, shortened
from wardian.builds.grounds import Grounds
from wardian.builds.inside import Say
from wardian.builds.inventory import inventory
from wardian.builds.plans import needed_stages
from wardian.builds.stages import Count, Ground, Workplace
from wardian.builds.trees import Tree, archive_tree, image_tree
from wardian.images.compose import Clean, compose_root
from wardian.images.erofs import Image
from wardian.images.indexes import Indexes
from wardian.images.roots import Roots
from wardian.isolation.drivers import Drivers
from wardian.isolation.port import Driver, RootImage
from wardian.model.build import BaseKind, BuildLine, Built, Lock, Plan, Stage, Surroundings
from wardian.model.egress import GrantedHost
from wardian.model.errors import Kind, WardianError
from wardian.model.isolation import IsolationLevel, Wanted
from wardian.model.resources import Resources
from wardian.model.sandbox import Snapshot
from wardian.model.template import Edition
from wardian.sandboxes.benches import Bench

LIFETIME_S = 3600
"""The longest a build may take. Its machines do not live longer, whatever happens."""

LINES_MAX = 20_000
"""How many lines a build may log. What comes after is not said, but the last lines of a failure are."""

ROOM = Resources(memory_mib=1024, disk_mib=8192, processes_max=1024)
"""What a machine has in which steps run, when the plan does not ask for more."""


_log = logging.getLogger(__name__)


class MakeBench(Protocol):
    """Makes the machines of a build."""

    def __call__(
        self,
        tenant: str,
        root: RootImage,
        resources: Resources,
        *,
        driver: Driver,
        lifetime_s: int,
        granted: tuple[GrantedHost, ...] = (),
        build_id: str | None = None,
    ) -> AbstractAsyncContextManager[Bench]: ...


@dataclass(frozen=True, slots=True)
class Yard:
    """Where builds are done: what a builder needs of the house.

    ``make_bench`` makes a machine, by one of ``drivers``; ``indexes`` are the host's package indexes;
    ``scratch`` is a directory on the same file system as ``roots``; ``inspect`` raises for an image that must
    not be published; ``house`` is the tenant whose the house's own templates are.
    """

    make_bench: MakeBench
    drivers: Drivers
    indexes: Indexes
    grounds: Grounds
    roots: Roots
    cache: LayerCache
    scratch: Path
    now_us: Callable[[], int]
    inspect: Callable[[str, RootImage], Awaitable[None]]
    house: str = ""


class Builder:
    """Builds plans, any number at a time; each build is one call of :meth:`build`, which may be cancelled."""

    def __init__(self, yard: Yard) -> None:
        self._yard = yard

    async def build(
        self,
        plan: Plan,
        *,
        tenant: str,
        context: Context,
        log: Callable[[BuildLine], None],
        lock: Lock | None = None,
        minimum: IsolationLevel | None = None,
    ) -> Built:
        """Carry ``plan`` out. With a ``lock``, from what it says, and only to the very files it says.

        Everything runs in the plan's isolation, and behind a wall of ``minimum`` at least.
        Raises :class:`BuildFailed` for everything that is the plan's fault.
        """
        self._yard.scratch.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="build-", dir=self._yard.scratch) as scratch:
            job = _Job(
                self._yard,
                plan,
                tenant,
                context,
                Log(log, self._yard.now_us),
                lock,
                minimum,
                self._yard.drivers.choose(Wanted(plan.isolation, minimum)),
                Path(scratch),
            )
            try:
                async with asyncio.timeout(LIFETIME_S):
                    return await job.run()
            except TimeoutError:
                raise BuildFailed(f"the build took longer than {LIFETIME_S // 60} minutes") from None
            finally:
                await asyncio.to_thread(self._yard.cache.prune)

    def tidy(self) -> None:
        """Remove what builds of a server that was killed left on disk. Before the first build."""
        shutil.rmtree(self._yard.scratch, ignore_errors=True)
        self._yard.cache.tidy()

    async def warm_up(self, edition: Edition, driver: Driver) -> Snapshot:
        """Start what a ready build starts, in a machine of a driver that did not build it, and capture it.

        The machine is its template's owner's. Raises :class:`NotWarm` when it does not become ready.
        """
        build, yard = edition.build, self._yard
        asked = plans.of_kept(build.plan)
        starting = warm.Starting(
            build.start, build.ready, asked.ready_timeout_s, asked.ports, build.surroundings
        )
        tenant, root = edition.template.tenant or yard.house, yard.roots.find(build.root_digest)
        bench = yard.make_bench(
            tenant, root, build.resources, driver=driver, lifetime_s=LIFETIME_S, build_id=build.id
        )

        def say(line: str) -> None:
            _log.info("warming build %s for %s: %s", build.id, driver.name, line)

        try:
            return await _warmed(bench, starting, say)
        except BuildFailed as error:
            raise NotWarm(
                f"what template '{edition.template.id}' starts did not become ready under {driver.name}: "
                f"{error.message}",
                hint="ask for the isolation it was built in, or build it in this one",
            ) from error


class NotWarm(WardianError):
    """A template that was built in one isolation cannot be started in another."""

    kind, code = Kind.CONFLICT, "template_not_warm"


async def _warmed(opening: AbstractAsyncContextManager[Bench], starting: warm.Starting, say: Say) -> Snapshot:
    """The capture of a bench in which everything is started and ready."""
    async with opening as bench:
        await warm.start(bench, starting, say)
        say("capturing the running machine")
        return await bench.snapshot()


class Log:
    """A build's log: stamped, and bounded."""

    def __init__(self, sink: Callable[[BuildLine], None], now_us: Callable[[], int]) -> None:
        self._sink, self._now_us = sink, now_us
        self._said = 0

    def __call__(self, message: str, step: str = "") -> None:
        self._said += 1
        if self._said <= LINES_MAX:
            self._sink(BuildLine(self._now_us(), "info", message, step))
        elif self._said == LINES_MAX + 1:
            words = f"more than {LINES_MAX} lines; the rest is not kept"
            self._sink(BuildLine(self._now_us(), "warn", words, step))


@dataclass(slots=True)
class Record:
    """Notes down what a build is made of, for its lock."""

    base: dict[str, str] = field(default_factory=dict)
    packages: dict[str, Mapping[str, str]] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    steps: list[str] = field(default_factory=list)

    def stage(self, stage: Stage, ground: Ground) -> None:
        """A stage, and what it stands on."""
        if stage.base.kind is not BaseKind.STAGE:
            self.base |= {f"{stage.name}.{name}": fact for name, fact in ground.facts.items()}
        if ground.packages and stage.base.kind is BaseKind.DEBIAN:
            self.packages[locks.BASE_KIND + stage.name] = dict(ground.packages)
        for step in stage.steps:
            digest = digest_in(step.files)
            if digest is not None:
                self._file(shortened(step.text or describe(step)), f"sha256:{digest}")

    def _file(self, words: str, digest: str) -> None:
        """What one step copied; where several say the same, they are numbered."""
        name, number = words, 1
        while self.files.get(name, digest) != digest:
            number += 1
            name = f"{words} ({number})"
        self.files[name] = digest

    def lock(self, root: RootImage) -> Lock:
        """The lock of a build that came to ``root``."""
        with Image(root.path) as image:
            tree, packages = image.tree_digest(), inventory(image)
        return Lock(
            base=self.base,
            packages={**self.packages, **packages},
            files=self.files,
            steps=list(self.steps),
            tree=tree,
            image=root.digest,
        )


@dataclass(slots=True)
class _Job:
    """One build under way."""

    yard: Yard
    plan: Plan
    tenant: str
    context: Context
    say: Log
    lock: Lock | None
    minimum: IsolationLevel | None
    driver: Driver
    scratch: Path

    async def run(self) -> Built:
        """The whole build. What the cache brought and a lock contradicts is done again without it."""
        try:
            return await self._once(force=self.plan.force)
        except locks.LockBroken:
            if self.plan.force:
                raise
            self.say("what the cache has is not what the lock says: building without it")
            return await self._once(force=True)

    async def _once(self, *, force: bool) -> Built:
        needed = needed_stages(self.plan.stages)
        count = Count(sum(len(stage.steps) for stage in needed))
        record = Record()
        done: dict[str, Ground] = {}
        for stage in needed:
            work = self._workplace(done, force=force)
            ground = await self._ground(stage, done)
            record.stage(stage, ground)
            done[stage.name], keys = await stages.carry_out(work, ground, stage, count)
            record.steps += keys
        return await self._finish(done[needed[-1].name], record)

    async def _ground(self, stage: Stage, done: Mapping[str, Ground]) -> Ground:
        base = stage.base
        if base.kind is BaseKind.STAGE:
            return done[base.reference]
        return await self.yard.grounds.of(
            self.tenant,
            base,
            self.say,
            pins=locks.base_pins(self.lock, stage.name),
            layer_max=self._layer_max(),
            minimum=self.minimum,
        )

    def _workplace(self, done: Mapping[str, Ground], *, force: bool) -> Workplace:
        asked = self.plan.resources
        room = Resources(
            cpu_count=asked.cpu_count,
            memory_mib=max(asked.memory_mib, ROOM.memory_mib),
            disk_mib=max(asked.disk_mib, ROOM.disk_mib),
            processes_max=max(asked.processes_max, ROOM.processes_max),
        )

        @asynccontextmanager
        async def open_tree(files: str) -> AsyncIterator[Tree]:
            digest = digest_in(files)
            if digest is None:
                root = await self._compose(done[files.removeprefix("stage:")])
                opening = image_tree(root.path)
            else:
                opening = archive_tree(self.context.path(digest), bytes_max=self._layer_max())
            with opening as tree:
                yield tree

        def digest_of(files: str) -> str:
            digest = digest_in(files)
            return done[files.removeprefix("stage:")].key if digest is None else digest

        return Workplace(
            tenant=self.tenant,
            cache=self.yard.cache,
            make_bench=lambda root: self.yard.make_bench(
                self.tenant,
                root,
                room,
                driver=self.driver,
                lifetime_s=LIFETIME_S,
                granted=self.yard.indexes.hosts,
            ),
            equip=lambda guest: equipped(guest, self.yard.indexes, self.lock),
            open_tree=open_tree,
            digest_of=digest_of,
            layer_max=self._layer_max(),
            force=force,
            say=self.say,
        )

    def _layer_max(self) -> int:
        return max(self.plan.resources.disk_mib, ROOM.disk_mib) << 20

    async def _compose(self, ground: Ground) -> RootImage:
        """One root image of a ground's root and layer."""
        yard = self.yard
        if ground.layer is None:
            return ground.root
        known = None if self.plan.force else yard.cache.composed(self.tenant, ground.key)
        if known is not None and (root := yard.roots.known(known)) is not None:
            return root
        self.say("composing the image")
        out = self.scratch / f"{ground.key}.erofs"
        made = await asyncio.to_thread(compose_root, ground.root.path, [ground.layer], out, clean=Clean())
        root = await asyncio.to_thread(yard.roots.take, out, made.digest)
        await asyncio.to_thread(yard.cache.note_composed, self.tenant, ground.key, made.digest)
        return root

    async def _finish(self, ground: Ground, record: Record) -> Built:
        """Compose the image, check it against the lock, start what is to be started."""
        root = await self._compose(ground)
        await self.yard.inspect(self.tenant, root)
        made = await asyncio.to_thread(record.lock, root)
        if self.lock is not None:
            locks.check(self.lock, made)
        await asyncio.to_thread(lent.check, root.path, self.yard.indexes.secrets)
        plan = self.plan
        start = ground.start if plan.start is None else plan.start
        ready = ground.ready if plan.ready is None else plan.ready
        snapshot_id = None
        if start:
            snapshot_id = await self._warm(root, start, ready, ground.surroundings)
        self.say(f"done: {root.digest}")
        return Built(root.digest, snapshot_id, plan.resources, ground.surroundings, start, ready, made)

    async def _warm(self, root: RootImage, start: str, ready: str, around: Surroundings) -> str:
        plan = self.plan
        starting = warm.Starting(start, ready, plan.ready_timeout_s, plan.ports, around)
        bench = self.yard.make_bench(
            self.tenant, root, plan.resources, driver=self.driver, lifetime_s=LIFETIME_S
        )
        return (await _warmed(bench, starting, self.say)).id
