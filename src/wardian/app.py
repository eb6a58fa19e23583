"""The composition root: the only place where parts are put together, in the order in which they must start.

lock → database (and its migrations) → key → bridge → image → drivers (probed by booting machines) → lease →
lifecycle (which takes over what an earlier server left) → the two planes. Whatever fails, what was begun is
let go in reverse order; machines are never touched by a stop.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Connection
from starlette.types import ASGIApp

from wardian.api.auth import KEY_FORM, Keyring, new_key
from wardian.api.dispatch import Dispatch
from wardian.api.e2b.app import build_control_plane
from wardian.api.e2b.context import ControlPlane
from wardian.api.envd import build_data_plane
from wardian.api.volumes import build_content_plane
from wardian.api.wardian import bridge as own_bridge
from wardian.api.wardian import builds as own_builds
from wardian.api.wardian import differences
from wardian.api.wardian import snapshots as own_snapshots
from wardian.bridge.passes import Mint
from wardian.bridge.service import Bridge
from wardian.bridge.supervisor import Keys as BridgeKeys
from wardian.builds.builder import Builder, Yard
from wardian.builds.cache import LayerCache
from wardian.builds.grounds import Grounds, Known
from wardian.builds.service import Builds, House, Limits
from wardian.config import DATABASE, BadSetting, Settings
from wardian.guest.guest import ProcessConfig
from wardian.images.bases import Bases
from wardian.images.catalog import Catalog, base_image, default_cache
from wardian.images.indexes import host_indexes
from wardian.images.oci.outlet import Allows, Outlet
from wardian.images.roots import Roots
from wardian.isolation.drivers import Drivers, Make
from wardian.isolation.gvisor import GvisorDriver, Tools
from wardian.isolation.port import Driver
from wardian.isolation.qemu import QemuDriver
from wardian.isolation.qemu import Tools as QemuTools
from wardian.model.errors import Unavailable, WardianError
from wardian.model.resources import Resources
from wardian.model.template import Edition
from wardian.network.policy import Policy
from wardian.network.shore import Shore
from wardian.recorder.log import Recorder
from wardian.sandboxes.inspecting import SnapshotInspector
from wardian.sandboxes.leases import DirectoryLock, NodeLease
from wardian.sandboxes.pool import Bounds, Pool, PoolLimits
from wardian.sandboxes.reconciler import Outcome
from wardian.sandboxes.service import Sandboxes
from wardian.sandboxes.templates import Templates, house_edition
from wardian.sandboxes.workshop import Options, Workshop
from wardian.snapshots.attest import SigningKey
from wardian.snapshots.scan import Report
from wardian.snapshots.store import SnapshotStore
from wardian.store import keys, private
from wardian.store.clock import now_us
from wardian.store.database import Database
from wardian.store.keys import ApiKey
from wardian.store.sealing import Seal
from wardian.vault import keys as vault_keys
from wardian.volumes.mounts import Mounts
from wardian.volumes.service import Volumes
from wardian.volumes.tree import Limits as VolumeLimits

FIRMWARE = Path("/usr/share/qemu/qboot.rom")
NODE = "local"
TENANT = "default"
BASE = "base"
KEY_FILE = "key"
SEAL_FILE = "seal.key"
ATTEST_FILE = "attest.key"
TOKEN_KEY_FILE = "tokens.key"
VOLUME_KEY_FILE = "volumes.key"


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


@asynccontextmanager
async def start(settings: Settings) -> AsyncIterator[App]:
    """Start everything but the listener. Raises a :class:`WardianError` that says what is missing."""
    data = settings.data_dir
    data.mkdir(parents=True, exist_ok=True, mode=0o700)
    async with AsyncExitStack() as stack:
        stack.callback(DirectoryLock(data).release)
        database = await Database.open(data / DATABASE)
        stack.push_async_callback(database.close)
        key = await _local_key(database, data / KEY_FILE)
        opening = asyncio.create_task(_bridge(settings, database))  # a process starts meanwhile
        stack.push_async_callback(_close, opening)
        volumes = await _volumes(settings, database)
        stack.push_async_callback(volumes.close)
        roots = Roots(data / "roots")
        base = await asyncio.to_thread(_base_template, settings, roots)

        drivers = await Drivers.probe(serving(settings))
        stack.push_async_callback(drivers.close)
        drivers.check_usable()
        lease = await NodeLease.take(database, NODE, now_us=now_us)
        stack.push_async_callback(lease.release)
        snapshots = SnapshotStore(data / "snapshots")
        stack.push_async_callback(snapshots.close)
        await snapshots.open()

        def record(sandbox_id: str, kind: str, facts: Mapping[str, Any]) -> None:
            sandboxes.record(sandbox_id, kind, facts)

        seal = await asyncio.to_thread(Seal.kept_in, data / SEAL_FILE)
        bridge = await opening
        shore = Shore(
            Policy(settings.allowed_networks),
            lambda sandbox_id, event: _at_the_shore(record, sandbox_id, event),
            unseal=seal.open,
            bridge=bridge,
        )
        stack.callback(shore.close)
        mounts = Mounts(volumes)
        inspector = await _inspector(settings, bridge)
        works = Workshop(
            database=database,
            drivers=drivers,
            snapshots=snapshots,
            recorder=Recorder(data / "events", now_us=now_us),
            lease=lease,
            pool=Pool(pool_limits(settings)),
            root_image=roots.find,
            outbound=shore,
            volumes=mounts,
            bridge=bridge,
            inspector=inspector,
            options=Options(
                timeout_max_s=settings.timeout_max_hours * 3600,
                sandboxes_max=settings.sandboxes_max,
                hot=settings.pool_hot_of,
            ),
        )
        templates = Templates(database, operator=TENANT)
        await templates.install(base)
        sandboxes = Sandboxes(works, templates)
        stack.push_async_callback(sandboxes.close)
        stack.push_async_callback(mounts.close)
        volumes.in_use = sandboxes.mounts_volume
        bridge.attach(dial=shore.dial_host, locate=sandboxes.find_live, record=record)
        taken_over = await sandboxes.start()

        data_plane = build_data_plane(sandboxes, record=record, passes=bridge.environment)
        stack.push_async_callback(data_plane.aclose)
        builder = builder_of(settings, sandboxes, templates, works, roots, shore.allows, inspector)
        builds = Builds(
            House(
                database=database,
                templates=templates,
                sandboxes=sandboxes,
                roots=roots,
                builder=builder,
                drivers=drivers,
                fence=lease.fence,
            ),
            data / "builds",
            Limits(host_images=frozenset({TENANT})),
        )
        stack.push_async_callback(builds.close)
        sandboxes.warm_up_with(builder.warm_up)
        await builds.open()
        plane = ControlPlane(
            sandboxes,
            templates,
            builds,
            settings.domain,
            settings.timeout_max_hours * 3600,
            shore.check,
            seal.seal,
            bridge.vault,
            volumes,
            bridge,
        )

        async def find_key(key: str) -> ApiKey | None:
            return await database.read(lambda conn: keys.find(conn, key))

        control_plane = build_control_plane(
            plane,
            Keyring(find_key),
            more=[
                own_builds.router,
                own_bridge.router,
                differences.router,
                own_snapshots.router_of(inspector),
            ],
        )
        asgi = Dispatch(control=control_plane, data=data_plane, content=build_content_plane(volumes))
        yield App(asgi, sandboxes, key, settings.domain, drivers, taken_over, lease.lost)


def serving(settings: Settings) -> Mapping[str, Make]:
    """The drivers that the operator wants, in that order."""
    known = drivers_of(settings)
    if unknown := [name for name in settings.drivers if name not in known]:
        raise BadSetting(f"there is no driver {unknown[0][:32]!r}", hint=f"there are {', '.join(known)}")
    return {name: known[name] for name in settings.drivers}


def drivers_of(settings: Settings) -> Mapping[str, Make]:
    """The isolation drivers there are, by name."""
    return {
        GvisorDriver.name: lambda: _gvisor(settings),
        QemuDriver.name: lambda: _qemu(settings),
    }


def _gvisor(settings: Settings) -> Driver:
    launcher, guest = settings.programs / "launcher/build", settings.programs / "guest/build"
    tools = Tools(
        runsc=settings.runsc,
        launcher=launcher / "wardian-launch",
        enter=launcher / "wardian-enter",
        echo=launcher / "wardian-echo",
        agent=guest / "wardian-guest",
    )
    for program in (tools.launcher, tools.enter, tools.echo, tools.agent, tools.runsc):
        if not os.access(program, os.X_OK):
            raise Unavailable(f"{program} is missing", code="program_missing", hint="run `make setup`")
    return GvisorDriver(settings.data_dir / "gvisor", tools)


def _qemu(settings: Settings) -> Driver:
    launcher, guest = settings.programs / "launcher/build", settings.programs / "guest/build"
    cache = settings.cache_dir or default_cache()
    tools = QemuTools(
        qemu=settings.qemu,
        firmware=FIRMWARE,
        launcher=launcher / "wardian-launch",
        ram=launcher / "wardian-ram",
        tsc=launcher / "wardian-tsc",
        init=guest / "wardian-init",
        agent=guest / "wardian-guest",
        kernels=cache / "kernels",
        kernel=settings.kernel,
        kernel_arguments=settings.kernel_arguments,
    )
    return QemuDriver(settings.data_dir / "qemu", tools, host_dir=cache / "qemu")


def pool_limits(settings: Settings) -> PoolLimits:
    """How many machines wait: what was asked for, and a multiple of it under demand."""
    hot, created = settings.pool_hot, settings.pool_created
    # As the SDKs begin every command.
    shell = ProcessConfig(cmd="/bin/bash", args=("-l", "-c", "true"), envs={}, cwd=None)
    return PoolLimits(
        created=Bounds(created, 4 * created),
        hot=Bounds(hot, 8 * hot),
        memory_mib=settings.pool_memory_mib,
        rehearsal=shell,
    )


def builder_of(
    settings: Settings,
    sandboxes: Sandboxes,
    templates: Templates,
    works: Workshop,
    roots: Roots,
    allows: Allows,
    inspector: SnapshotInspector,
) -> Builder:
    """What carries plans out, with this server's own parts."""
    catalog = Catalog(settings.cache_dir)
    cache = LayerCache(settings.data_dir / "builds" / "layers")

    async def find_template(tenant: str, reference: str) -> Known | None:
        edition = await templates.find(tenant, reference)
        if edition is None:
            return None
        build = edition.build
        return Known(build.root_digest, build.surroundings, build.start, build.ready, {"tree": build.tree})

    grounds = Grounds(
        bases=Bases(
            catalog,
            Outlet(allows, frozenset(settings.private_registries)),
            directory=Path("/"),  # whose plans may name the host's files: ``Limits``
        ),
        catalog=catalog,
        roots=roots,
        cache=cache,
        find_template=find_template,
        find_snapshot=sandboxes.find_snapshot,
        thaw=sandboxes.thawed_bench,
    )
    yard = Yard(
        make_bench=sandboxes.bench,
        drivers=works.drivers,
        indexes=host_indexes(),
        grounds=grounds,
        roots=roots,
        cache=cache,
        scratch=settings.data_dir / "builds" / "scratch",
        now_us=works.now_us,
        house=TENANT,
        inspect=inspector.inspect_root,
    )
    return Builder(yard)


def _base_template(settings: Settings, roots: Roots) -> Edition:
    """The template everybody has. Raises :class:`Unavailable` when its image has not been built."""
    image = base_image(settings.cache_dir)
    root = roots.adopt(image, Catalog(settings.cache_dir))
    return house_edition(
        BASE,
        root_digest=root.digest,
        tree=image.manifest.tree,
        resources=Resources(),
        created_at=int(root.path.stat().st_mtime) * 1_000_000,
    )


async def _bridge(settings: Settings, database: Database) -> Bridge:
    """The bridge, running. Only it has the key that opens secrets; the one that signs run tokens is ours."""
    signing = await asyncio.to_thread(vault_keys.from_file, settings.data_dir / TOKEN_KEY_FILE, may_make=True)
    trust = "" if settings.bridge_ca is None else await asyncio.to_thread(settings.bridge_ca.read_text)
    return await Bridge.open(
        database,
        settings.data_dir / "bridge",
        Mint(signing.secret, settings.timeout_max_hours * 3600),
        BridgeKeys(settings.vault_key, settings.vault_key_command, settings.vault_key_previous),
        now_us,
        trust,
    )


async def _close(opening: asyncio.Task[Bridge]) -> None:
    """Whatever has become of it by now."""
    opening.cancel()
    with suppress(asyncio.CancelledError, WardianError):
        await (await opening).close()


async def _inspector(settings: Settings, bridge: Bridge) -> SnapshotInspector:
    """What has everything that is published searched, for the vault's secrets and the operator's canaries."""
    canaries: list[bytes] = []
    if settings.scan_canaries is not None:
        text = await asyncio.to_thread(settings.scan_canaries.read_bytes)
        canaries = [line for line in text.splitlines() if line.strip()]
    key = await asyncio.to_thread(SigningKey.kept_in, settings.data_dir / ATTEST_FILE)

    async def search(tenant: str, paths: Sequence[Path]) -> Report:
        return await bridge.search(tenant, paths, canaries, key.fingerprints)

    return SnapshotInspector(search, key, settings.data_dir / "attestations")


async def _volumes(settings: Settings, database: Database) -> Volumes:
    """The volumes; their tokens are signed with a key of their own."""
    key = await asyncio.to_thread(vault_keys.from_file, settings.data_dir / VOLUME_KEY_FILE, may_make=True)
    limits = VolumeLimits(bytes_max=settings.volume_size_gib << 30)
    return await Volumes.open(database, settings.data_dir / "volumes", key.secret, limits)


async def _local_key(database: Database, path: Path) -> str:
    """The key for whoever may read the data directory: made at the first start, kept for the next ones."""
    known = await asyncio.to_thread(_read_key, path)
    if known and await database.read(lambda conn: keys.find(conn, known)) is not None:
        return known
    key, at = new_key(), now_us()

    def transaction(conn: Connection) -> None:
        keys.add_tenant(conn, TENANT, name=TENANT, at=at)
        keys.add_key(conn, key, key_id=f"k{at}", tenant_id=TENANT, name="local", at=at)

    await database.write(transaction, durable=True)
    await asyncio.to_thread(private.publish, path, f"{key}\n".encode())
    return key


def _read_key(path: Path) -> str | None:
    key = (private.read(path) or b"").decode(errors="replace").strip()
    return key if KEY_FORM.fullmatch(key) else None


def _at_the_shore(record: Any, sandbox_id: str, event: Mapping[str, object]) -> None:
    facts = dict(event)
    record(sandbox_id, f"network.{facts.pop('kind')}", facts)
