"""Starting a server: the order in which its parts must come up.

lock → database (and its migrations) → key → bridge → image → drivers (probed by booting machines) → lease →
lifecycle (which takes over what an earlier server left) → builds → the planes. Whatever fails, what was begun
is let go in reverse order; machines are never touched by a stop.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter
from starlette.types import ASGIApp

from wardian.api.auth import Keyring
from wardian.api.dispatch import Dispatch
from wardian.api.e2b.app import build_control_plane
from wardian.api.e2b.context import ControlPlane
from wardian.api.envd import build_data_plane
from wardian.api.inside.app import build_inside
from wardian.api.volumes import build_content_plane
from wardian.api.wardian import agents as own_agents
from wardian.api.wardian import bridge as own_bridge
from wardian.api.wardian import builds as own_builds
from wardian.api.wardian import differences
from wardian.api.wardian import runners as own_runners
from wardian.api.wardian import runs as own_runs
from wardian.api.wardian import snapshots as own_snapshots
from wardian.api.wardian import triggers as own_triggers
from wardian.api.wardian import work as own_work
from wardian.app import drivers as isolation
from wardian.app.janitor import Janitor
from wardian.app.keeping import SEAL_FILE, TENANT, local_key
from wardian.app.parts import (
    base_template,
    builder_of,
    inspector_of,
    journal_of,
    open_bridge,
    open_volumes,
    pool_limits,
)
from wardian.bridge.service import Bridge
from wardian.builds.service import Builds, House, Limits
from wardian.config import DATABASE, Settings
from wardian.images.roots import Roots
from wardian.isolation.drivers import Drivers
from wardian.model.errors import WardianError
from wardian.model.sandbox import Sandbox
from wardian.model.template import Edition
from wardian.network.policy import Policy
from wardian.network.shore import Shore
from wardian.recorder.log import Recorder
from wardian.runners.house import House as RunnerHouse
from wardian.runners.service import Runners
from wardian.runners.store import ReleaseStore
from wardian.runs.boxes import Boxes
from wardian.runs.commits import Commits
from wardian.runs.course import Course
from wardian.runs.door import Door
from wardian.runs.engines.dbos_engine import DbosEngine
from wardian.runs.files import RunFiles
from wardian.runs.fitting import Fitting
from wardian.runs.offers import Offers
from wardian.runs.removal import Keeping
from wardian.runs.service import Runs
from wardian.runs.triggers import Triggers
from wardian.runs.works import RunWorks
from wardian.sandboxes.compressing import Compressor
from wardian.sandboxes.inspecting import SnapshotInspector
from wardian.sandboxes.leases import DirectoryLock, NodeLease
from wardian.sandboxes.pool import Pool
from wardian.sandboxes.reconciler import Outcome
from wardian.sandboxes.service import Sandboxes
from wardian.sandboxes.surroundings import sandbox_environment
from wardian.sandboxes.templates import Templates
from wardian.sandboxes.workshop import Options, Workshop
from wardian.snapshots.store import SnapshotStore
from wardian.store import keys
from wardian.store.clock import now_us
from wardian.store.database import Database
from wardian.store.keys import ApiKey
from wardian.store.sealing import Seal
from wardian.volumes.mounts import Mounts
from wardian.volumes.service import Volumes

NODE = "local"


@dataclass(frozen=True, slots=True)
class App:
    """A started server. ``lost`` is set when another server took this node over: nothing may be done then."""

    asgi: ASGIApp
    sandboxes: Sandboxes
    key: str
    domain: str | None
    drivers: Drivers
    taken_over: Outcome
    lost: asyncio.Event


@dataclass(frozen=True, slots=True)
class _Ground:
    """What sandboxes stand on."""

    settings: Settings
    database: Database
    base: Edition
    roots: Roots
    drivers: Drivers
    lease: NodeLease
    snapshots: SnapshotStore
    volumes: Volumes
    bridge: Bridge
    seal: Seal


@dataclass(frozen=True, slots=True)
class _Lifecycle:
    """Sandboxes, and what they are made of and with."""

    works: Workshop
    templates: Templates
    sandboxes: Sandboxes
    shore: Shore
    door: Door
    inspector: SnapshotInspector
    runners: Runners
    taken_over: Outcome


@asynccontextmanager
async def start(settings: Settings) -> AsyncIterator[App]:
    """Start everything but the listener. Raises a :class:`WardianError` that says what is missing."""
    data = settings.data_dir
    data.mkdir(parents=True, exist_ok=True, mode=0o700)
    async with AsyncExitStack() as stack:
        stack.callback(DirectoryLock(data).release)
        database = await Database.open(data / DATABASE)
        stack.push_async_callback(database.close)
        key = await local_key(database, data)
        ground = await _lay_ground(stack, settings, database)
        life = await _begin_lifecycle(stack, ground)
        builds = await _open_builds(stack, ground, life)
        runs, of_runs = await _open_runs(stack, ground, life)
        asgi = _open_planes(stack, ground, life, builds, of_runs)
        janitor = Janitor(
            {
                "the ledger": ground.bridge.sweeper.sweep,
                "runs": runs.removal.sweep,
                "releases of runners": life.runners.removal.sweep,  # which runs have no more
            }
        )
        stack.push_async_callback(janitor.close)
        janitor.start()
        yield App(
            asgi=asgi,
            sandboxes=life.sandboxes,
            key=key,
            domain=settings.domain,
            drivers=ground.drivers,
            taken_over=life.taken_over,
            lost=ground.lease.lost,
        )


async def _lay_ground(stack: AsyncExitStack, settings: Settings, database: Database) -> _Ground:
    data = settings.data_dir
    opening = asyncio.create_task(open_bridge(settings, database))  # a process starts meanwhile
    stack.push_async_callback(_close, opening)
    volumes = await open_volumes(settings, database)
    stack.push_async_callback(volumes.close)
    roots = Roots(data / "roots")
    base = await asyncio.to_thread(base_template, settings, roots)
    drivers = await Drivers.probe(isolation.serving(settings))
    stack.push_async_callback(drivers.close)
    drivers.check_usable()
    lease = await NodeLease.take(database, NODE, now_us=now_us)
    stack.push_async_callback(lease.release)
    snapshots = SnapshotStore(data / "snapshots")
    stack.push_async_callback(snapshots.close)
    await snapshots.open()
    seal = await asyncio.to_thread(Seal.kept_in, data / SEAL_FILE)
    bridge = await opening
    return _Ground(settings, database, base, roots, drivers, lease, snapshots, volumes, bridge, seal)


async def _begin_lifecycle(stack: AsyncExitStack, ground: _Ground) -> _Lifecycle:
    settings, bridge = ground.settings, ground.bridge

    def record(sandbox_id: str, kind: str, facts: Mapping[str, Any]) -> None:
        sandboxes.record(sandbox_id, kind, facts)

    def locate(sandbox_id: str) -> Sandbox | None:
        return sandboxes.find_live(sandbox_id)

    door = Door(locate)
    shore = Shore(
        Policy(settings.allowed_networks),
        lambda sandbox_id, event: _at_the_shore(record, sandbox_id, event),
        unseal=ground.seal.open,
        bridge=bridge,
        door=door,
    )
    stack.callback(shore.close)
    mounts = Mounts(ground.volumes)
    inspector = await inspector_of(settings, bridge)
    works = Workshop(
        database=ground.database,
        drivers=ground.drivers,
        snapshots=ground.snapshots,
        recorder=Recorder(settings.data_dir / "events", now_us=now_us),
        lease=ground.lease,
        pool=Pool(pool_limits(settings)),
        root_image=ground.roots.find,
        outbound=shore,
        volumes=mounts,
        bridge=bridge,
        inspector=inspector,
        options=Options(
            timeout_max_s=settings.timeout_max_s,
            sandboxes_max=settings.sandboxes_max,
            hot=settings.pool_hot_of,
        ),
    )
    templates = Templates(ground.database, operator=TENANT)
    await templates.install(ground.base)
    sandboxes: Sandboxes = Sandboxes(works, templates)
    stack.push_async_callback(sandboxes.close)
    stack.push_async_callback(mounts.close)
    ground.volumes.in_use = sandboxes.mounts_volume
    bridge.attach(dial=shore.dial_host, judge=shore.admit_granted, locate=sandboxes.find_live, record=record)
    runners = await _open_runners(stack, ground, works, sandboxes, mounts)
    taken_over = await sandboxes.start()
    compressor = Compressor(works, settings.snapshots_compress_after_s)
    stack.push_async_callback(compressor.close)
    compressor.start()
    return _Lifecycle(works, templates, sandboxes, shore, door, inspector, runners, taken_over)


async def _open_runners(
    stack: AsyncExitStack, ground: _Ground, works: Workshop, sandboxes: Sandboxes, mounts: Mounts
) -> Runners:
    store = await asyncio.to_thread(ReleaseStore, ground.settings.data_dir / "runners")
    house = RunnerHouse(
        database=ground.database,
        sandboxes=sandboxes,
        mounts=mounts,
        lease=ground.lease,
        environment=lambda sandbox: _environment(ground, sandbox),
        now_us=now_us,
        checkpoint=works.checkpoint,
    )
    runners = Runners(house, store, ground.settings.runner_releases_keep)
    await runners.open()
    stack.push_async_callback(runners.close)
    return runners


def _environment(ground: _Ground, sandbox: Sandbox) -> Mapping[str, str]:
    """What the house starts in a sandbox starts with."""
    return {**ground.bridge.environment(sandbox), **sandbox_environment(sandbox)}


async def _open_builds(stack: AsyncExitStack, ground: _Ground, life: _Lifecycle) -> Builds:
    builder = builder_of(
        ground.settings,
        life.sandboxes,
        life.templates,
        life.works,
        ground.roots,
        life.shore.allows,
        life.inspector,
    )
    house = House(
        database=ground.database,
        templates=life.templates,
        sandboxes=life.sandboxes,
        roots=ground.roots,
        builder=builder,
        drivers=ground.drivers,
        fence=ground.lease.fence,
    )
    builds = Builds(house, ground.settings.data_dir / "builds", Limits(host_images=frozenset({TENANT})))
    stack.push_async_callback(builds.close)
    life.sandboxes.warm_up_with(builder.warm_up)
    await builds.open()
    return builds


async def _open_runs(
    stack: AsyncExitStack, ground: _Ground, life: _Lifecycle
) -> tuple[Runs, Sequence[APIRouter]]:
    """Runs, under way again; what is asked about them over the API."""
    settings, data = ground.settings, ground.settings.data_dir
    works = RunWorks(
        database=ground.database,
        sandboxes=life.sandboxes,
        recorder=Recorder(data / "runs", now_us=now_us),
        lease=ground.lease,
        now_us=now_us,
        checkpoint=life.works.checkpoint,
        heed=ground.bridge.budgets.heed,
    )

    def environment(sandbox: Sandbox) -> Mapping[str, str]:
        return _environment(ground, sandbox)

    def switched(sandbox: Sandbox, facts: Mapping[str, Any]) -> None:
        if sandbox.spec.run is not None:
            works.log(sandbox.spec.run, "run.runner", sandbox=sandbox.id, **facts)

    life.runners.switched = switched
    commits = Commits(works)
    boxes = Boxes(works, commits, environment)
    offers = Offers(works, boxes, settings.worker_lease_s)
    fitting = Fitting(works, life.runners)
    course = Course(works, commits, environment, fitting, boxes, offers, at_once=settings.runs_at_once)
    engine = DbosEngine(course.attempt, journal_of(settings), lost=ground.lease.lost.set)
    course.nudge = engine.nudge
    files = RunFiles(works, data / "files", commits.check)
    keeping = Keeping(settings.runs_keep_days, settings.run_logs_days)
    runs = Runs(works, life.templates, course, engine, files, keeping)
    stack.push_async_callback(commits.close)
    stack.push_async_callback(files.close)
    life.door.open(build_inside(runs, commits, files, ground.bridge.judge))
    await runs.open()
    stack.push_async_callback(runs.close)
    triggers = Triggers(works, runs, ground.seal)
    await triggers.open()
    stack.push_async_callback(triggers.close)
    return runs, (
        own_agents.router_of(runs.agents),
        own_runs.router_of(runs),
        own_work.router_of(runs, commits, offers, boxes),
        own_triggers.router_of(triggers),
    )


def _open_planes(
    stack: AsyncExitStack, ground: _Ground, life: _Lifecycle, builds: Builds, of_runs: Sequence[APIRouter]
) -> ASGIApp:
    settings, bridge = ground.settings, ground.bridge

    async def find_key(key: str) -> ApiKey | None:
        return await ground.database.read(lambda conn: keys.find(conn, key))

    data_plane = build_data_plane(life.sandboxes, record=life.sandboxes.record, passes=bridge.environment)
    stack.push_async_callback(data_plane.aclose)
    plane = ControlPlane(
        life.sandboxes,
        life.templates,
        builds,
        settings.domain,
        settings.timeout_max_s,
        life.shore.check,
        ground.seal.seal,
        bridge.vault,
        ground.volumes,
        bridge,
    )
    own = [
        own_builds.router,
        own_bridge.router,
        differences.router,
        own_snapshots.router_of(life.inspector),
        own_runners.router_of(life.runners),
        *of_runs,
    ]
    control_plane = build_control_plane(plane, Keyring(find_key), more=own)
    return Dispatch(control=control_plane, data=data_plane, content=build_content_plane(ground.volumes))


def _at_the_shore(record: Any, sandbox_id: str, event: Mapping[str, object]) -> None:
    facts = dict(event)
    record(sandbox_id, f"network.{facts.pop('kind')}", facts)


async def _close(opening: asyncio.Task[Bridge]) -> None:
    """Whatever has become of it by now."""
    opening.cancel()
    with suppress(asyncio.CancelledError, WardianError):
        await (await opening).close()


__all__ = ["App", "start"]
