"""The parts that take more than a line to make: each from the settings and from what it stands on."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from secrets import token_hex

from wardian.app.keeping import (
    ATTEST_FILE,
    ENGINE_FILE,
    ENGINE_SCHEMA_FILE,
    TENANT,
    TOKEN_KEY_FILE,
    VOLUME_KEY_FILE,
)
from wardian.bridge.passes import Mint
from wardian.bridge.retention import Retention
from wardian.bridge.service import Bridge
from wardian.bridge.supervisor import Keys as BridgeKeys
from wardian.builds.builder import Builder, Yard
from wardian.builds.cache import LayerCache
from wardian.builds.grounds import Grounds, Known
from wardian.config import Settings
from wardian.guest.guest import ProcessConfig
from wardian.images.bases import Bases
from wardian.images.catalog import Catalog, base_image
from wardian.images.indexes import host_indexes
from wardian.images.oci.outlet import Allows, Outlet
from wardian.images.roots import Roots
from wardian.model.resources import Resources
from wardian.model.template import Edition
from wardian.runs.engines.journals import Journal, PostgresJournal, SqliteJournal
from wardian.sandboxes.inspecting import SnapshotInspector
from wardian.sandboxes.pool import Bounds, PoolLimits
from wardian.sandboxes.service import Sandboxes
from wardian.sandboxes.templates import Templates, house_edition
from wardian.sandboxes.workshop import Workshop
from wardian.snapshots.attest import SigningKey
from wardian.snapshots.scan import Report
from wardian.store import private
from wardian.store.clock import now_us
from wardian.store.database import Database
from wardian.vault import keys as vault_keys
from wardian.volumes.service import Volumes
from wardian.volumes.tree import Limits as VolumeLimits

BASE = "base"


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


def base_template(settings: Settings, roots: Roots) -> Edition:
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


async def open_bridge(settings: Settings, database: Database) -> Bridge:
    """The bridge, running. Only it has the key that opens secrets; the one that signs run tokens is ours."""
    signing = await asyncio.to_thread(vault_keys.from_file, settings.data_dir / TOKEN_KEY_FILE, may_make=True)
    trust = "" if settings.bridge_ca is None else await asyncio.to_thread(settings.bridge_ca.read_text)
    return await Bridge.open(
        database,
        settings.data_dir / "bridge",
        Mint(signing.secret, settings.timeout_max_s),
        BridgeKeys(settings.vault_key, settings.vault_key_command, settings.vault_key_previous),
        now_us,
        trust,
        Retention(settings.effects_days, settings.effects_max),
    )


async def inspector_of(settings: Settings, bridge: Bridge) -> SnapshotInspector:
    """What has everything that is published searched, for the vault's secrets and the operator's canaries."""
    canaries: list[bytes] = []
    if settings.scan_canaries is not None:
        text = await asyncio.to_thread(settings.scan_canaries.read_bytes)
        canaries = [line for line in text.splitlines() if line.strip()]
    key = await asyncio.to_thread(SigningKey.kept_in, settings.data_dir / ATTEST_FILE)

    async def search(tenant: str, paths: Sequence[Path]) -> Report:
        return await bridge.search(tenant, paths, canaries, key.fingerprints)

    return SnapshotInspector(search, key, settings.data_dir / "attestations")


def journal_of(settings: Settings) -> Journal:
    """Where the engine of runs keeps its journal. In Postgres, every data directory has its own schema."""
    if settings.engine_url is None:
        return SqliteJournal(settings.data_dir / ENGINE_FILE)
    schema = private.kept(settings.data_dir / ENGINE_SCHEMA_FILE, lambda: f"wardian_{token_hex(8)}".encode())
    return PostgresJournal(settings.engine_url, schema.decode().strip())


async def open_volumes(settings: Settings, database: Database) -> Volumes:
    """The volumes; their tokens are signed with a key of their own."""
    key = await asyncio.to_thread(vault_keys.from_file, settings.data_dir / VOLUME_KEY_FILE, may_make=True)
    limits = VolumeLimits(bytes_max=settings.volume_size_gib << 30)
    return await Volumes.open(database, settings.data_dir / "volumes", key.secret, limits)


__all__ = [
    "base_template",
    "builder_of",
    "inspector_of",
    "journal_of",
    "open_bridge",
    "open_volumes",
    "pool_limits",
]
