"""What a stage stands on: every kind of base becomes a root image of this server's."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field, replace
from functools import partial
from hashlib import sha256
from threading import Event
from typing import Any

from wardian.builds.cache import LayerCache
from wardian.builds.errors import BuildFailed
from wardian.builds.keys import ground_key
from wardian.builds.stages import Ground, Say
from wardian.images.base import Report
from wardian.images.bases import Bases
from wardian.images.catalog import BuiltImage, Catalog
from wardian.images.layers import capture_layer
from wardian.images.roots import Roots
from wardian.model.build import Base, BaseKind, Surroundings
from wardian.model.errors import WardianError
from wardian.model.isolation import IsolationLevel
from wardian.model.sandbox import Snapshot
from wardian.sandboxes.benches import Bench

THREADS = 4
"""How many bases are made at once."""


@dataclass(frozen=True, slots=True)
class Known:
    """A template as a base: its files, and what it says of its processes."""

    root_digest: str
    surroundings: Surroundings
    start: str = ""
    ready: str = ""
    facts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Grounds:
    """Resolves bases. ``find_template`` and ``find_snapshot`` take a tenant and a reference."""

    bases: Bases
    catalog: Catalog
    roots: Roots
    cache: LayerCache
    find_template: Callable[[str, str], Awaitable[Known | None]]
    find_snapshot: Callable[[str, str], Awaitable[Snapshot | None]]
    thaw: Callable[[str, Snapshot, IsolationLevel | None], AbstractAsyncContextManager[Bench]]
    threads: Executor = field(default_factory=partial(ThreadPoolExecutor, THREADS, "bases"))

    async def of(
        self,
        tenant: str,
        base: Base,
        say: Say,
        *,
        pins: Mapping[str, str],
        layer_max: int,
        minimum: IsolationLevel | None = None,
    ) -> Ground:
        """The ground that ``base`` means. ``pins`` are the versions of Debian packages a lock asks for.

        A snapshot is woken behind a wall of ``minimum`` at least, or not at all.
        """
        try:
            match base.kind:
                case BaseKind.DEBIAN:
                    return await self._debian(base, say, pins)
                case BaseKind.IMAGE:
                    return await self._image(base, say)
                case BaseKind.TEMPLATE | BaseKind.SNAPSHOT:
                    return await self._named(tenant, base, layer_max, minimum)
                case BaseKind.STAGE:
                    raise AssertionError("stages are resolved by the builder")
        except BuildFailed:
            raise
        except WardianError as error:
            message = f"the base {base.reference!r} cannot be had: {error.message}"
            raise BuildFailed(message, hint=error.hint) from error

    async def _debian(self, base: Base, say: Say, pins: Mapping[str, str]) -> Ground:
        packages = base.packages
        if pins:
            packages = tuple(f"{name}={version}" for name, version in sorted(pins.items()))
        built = await self._made(self.bases.debian, base.reference, packages, _reporting(say))
        return await self._adopted(built, {"reference": base.reference}, Surroundings())

    async def _image(self, base: Base, say: Say) -> Ground:
        stop = Event()
        try:
            built = await self._made(
                self.bases.image,
                base.reference,
                username=base.username,
                password=base.password,
                report=_reporting(say),
                stop=stop,
            )
        finally:
            stop.set()
        config = built.config
        around = Surroundings(dict(config.env))
        if not base.plain:
            around = replace(around, workdir=config.workdir or "/", user=config.user or "root")
        return await self._adopted(built, {"reference": base.reference}, around)

    async def _made(self, make: Callable[..., BuiltImage], *arguments: Any, **options: Any) -> BuiltImage:
        """What ``make`` makes, in a thread of those that are for this: it may take many minutes."""
        making = partial(make, *arguments, **options)
        return await asyncio.get_running_loop().run_in_executor(self.threads, making)

    async def _adopted(self, built: BuiltImage, facts: Mapping[str, str], around: Surroundings) -> Ground:
        root = await asyncio.to_thread(self.roots.adopt, built, self.catalog)
        facts = {**facts, "digest": root.digest, "tree": built.manifest.tree}
        key = ground_key(root.digest, around)
        return Ground(root, key, around, facts=facts, packages=built.manifest.packages)

    async def _named(self, tenant: str, base: Base, layer_max: int, minimum: IsolationLevel | None) -> Ground:
        """A template of that name, or else a snapshot: to whoever asks for a base, the two are one."""
        if base.kind is BaseKind.TEMPLATE:
            known = await self.find_template(tenant, base.reference)
            if known is not None:
                root = self.roots.find(known.root_digest)
                around = known.surroundings
                facts = {"reference": base.reference, "digest": root.digest, **known.facts}
                key = ground_key(root.digest, around)
                return Ground(root, key, around, start=known.start, ready=known.ready, facts=facts)
        snapshot = await self.find_snapshot(tenant, base.reference)
        if snapshot is None:
            raise BuildFailed(f"there is no {base.kind.value} {base.reference!r}")
        return await self._of_snapshot(tenant, snapshot, base, layer_max, minimum)

    async def _of_snapshot(
        self, tenant: str, snapshot: Snapshot, base: Base, layer_max: int, minimum: IsolationLevel | None
    ) -> Ground:
        """A snapshot's files: it is woken for a moment, and what differs from its root is captured."""
        root = self.roots.find(snapshot.root_digest)
        key = sha256(f"snapshot {snapshot.digest}".encode()).hexdigest()
        layer = self.cache.find(tenant, key)
        if layer is None:
            layer = self.cache.place(tenant, key)
            layer.parent.mkdir(parents=True, exist_ok=True)
            async with self.thaw(tenant, snapshot, minimum) as bench:
                await capture_layer(bench.guest, root, layer, size_max=layer_max)
        facts = {"reference": base.reference, "digest": root.digest, "snapshot": snapshot.digest}
        return Ground(root, key, Surroundings(), layer, facts=facts)


def _reporting(say: Say) -> Report:
    """Progress of a base as lines of the log; called in another thread."""
    loop = asyncio.get_running_loop()
    said: set[str] = set()

    def report(words: str, fraction: float) -> None:
        if words not in said:
            said.add(words)
            loop.call_soon_threadsafe(say, f"base: {words}")

    return report
