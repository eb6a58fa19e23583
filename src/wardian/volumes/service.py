"""Volumes of every tenant: their rows, their tokens, and their open trees."""

from __future__ import annotations

import asyncio
import secrets
import shutil
from base64 import urlsafe_b64encode
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from hmac import compare_digest, digest
from pathlib import Path
from typing import TypeVar

from sqlalchemy import Connection
from sqlalchemy.exc import IntegrityError

from wardian.model.errors import Conflict, Invalid, LimitExceeded, NotFound, Unauthenticated
from wardian.model.volume import Volume, VolumeMount, checked_volume_name
from wardian.store import volumes as rows
from wardian.store.clock import now_us
from wardian.store.database import Database
from wardian.volumes.tree import Limits, Tree

T = TypeVar("T")

VOLUMES_MAX = 100
"""Per tenant."""
OPEN_MAX = 64
THREADS = 4

InUse = Callable[[str], bool]
"""Whether some sandbox, running or paused, has the volume of that id mounted."""


class VolumeUnknown(NotFound):
    code = "volume_not_found"


class Volumes:
    """The volumes of one server. ``in_use`` is set by whoever knows sandboxes, before the first request."""

    in_use: InUse

    def __init__(self, database: Database, directory: Path, key: bytes, limits: Limits) -> None:
        self._database, self._directory, self._key, self._limits = database, directory, key, limits
        self._trees: OrderedDict[str, Tree] = OrderedDict()
        self._turns: dict[str, asyncio.Lock] = {}
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="volume")
        self.in_use = lambda volume_id: False

    @classmethod
    async def open(
        cls, database: Database, directory: Path, key: bytes, limits: Limits | None = None
    ) -> Volumes:
        """Open them, and finish what an earlier server began to delete."""
        volumes = cls(database, directory, key, limits or Limits())
        for volume_id in await database.read(rows.being_deleted):
            await volumes._erase(volume_id)
        return volumes

    async def close(self) -> None:
        for volume_id in list(self._trees):
            async with self._turn(volume_id):
                await self._run(self._trees.pop(volume_id).close)
        self._threads.shutdown()

    # ── rows

    async def create(self, tenant: str, name: str) -> Volume:
        """A new, empty volume. Raises :class:`Conflict` when the tenant has one of that name."""
        made = Volume(f"vol{secrets.token_hex(10)}", tenant, checked_volume_name(name), now_us())

        def transaction(conn: Connection) -> None:
            if rows.count(conn, tenant) >= VOLUMES_MAX:
                raise LimitExceeded(f"you have {VOLUMES_MAX} volumes, which is the limit")
            rows.add(conn, made)

        try:
            await self._database.write(transaction, durable=True)
        except IntegrityError:
            raise Conflict(f"volume '{name}' exists", code="volume_exists") from None
        return made

    async def list(self, tenant: str) -> Sequence[Volume]:
        return await self._database.read(lambda conn: rows.of_tenant(conn, tenant))

    async def get(self, tenant: str, volume_id: str) -> Volume:
        """A tenant's volume; another tenant's looks like none."""
        found = await self._database.read(lambda conn: rows.get(conn, volume_id))
        if found is None or found.tenant != tenant:
            raise VolumeUnknown(f"volume '{volume_id[:64]}' not found")
        return found

    async def find_mounts(self, tenant: str, mounts: Sequence[VolumeMount]) -> tuple[VolumeMount, ...]:
        """``mounts`` with their volumes' ids. Raises :class:`Invalid` for the name of no volume."""

        def transaction(conn: Connection) -> tuple[VolumeMount, ...]:
            found = []
            for mount in mounts:
                volume = rows.find(conn, tenant, mount.name)
                if volume is None:
                    raise Invalid(f"volume '{mount.name}' not found", code="volume_not_found")
                found.append(VolumeMount(mount.name, mount.path, volume.id))
            return tuple(found)

        return await self._database.read(transaction) if mounts else ()

    async def delete(self, tenant: str, volume_id: str) -> None:
        """Delete a volume with its files. Refused while a sandbox has it mounted."""
        await self.get(tenant, volume_id)
        if self.in_use(volume_id):
            raise Conflict(
                f"volume '{volume_id}' is mounted by a sandbox",
                code="volume_in_use",
                hint="kill the sandboxes that mount it, paused ones too",
            )
        at = now_us()
        await self._database.write(lambda conn: rows.mark_deleted(conn, volume_id, at=at), durable=True)
        await self._erase(volume_id)

    async def _erase(self, volume_id: str) -> None:
        async with self._turn(volume_id):
            if (tree := self._trees.pop(volume_id, None)) is not None:
                await self._run(tree.close)
            await self._run(lambda: shutil.rmtree(self._directory / volume_id, ignore_errors=True))
        self._turns.pop(volume_id, None)
        await self._database.write(lambda conn: rows.remove(conn, volume_id))

    # ── tokens

    def token(self, volume: Volume) -> str:
        """What opens a volume's contents: signed, so that none is stored."""
        return "vt_" + urlsafe_b64encode(digest(self._key, volume.id.encode(), sha256)).decode().rstrip("=")

    async def opened_by(self, volume_id: str, token: str) -> Volume:
        """The volume that ``token`` opens. One refusal for a wrong token, a wrong volume, and none at all."""
        found = await self._database.read(lambda conn: rows.get(conn, volume_id))
        wanted = self.token(found or Volume(volume_id, "", "", 0))
        if not compare_digest(wanted.encode(), token.encode(errors="replace")) or found is None:
            raise Unauthenticated("the volume token is missing or wrong", code="bad_volume_token")
        return found

    # ── trees

    async def do(self, volume_id: str, work: Callable[[Tree], T]) -> T:
        """Run ``work`` on a volume's tree, off the event loop; one at a time per volume.

        It goes on even if the caller is cancelled, and raises :class:`VolumeUnknown` when the volume is gone.
        """
        return await asyncio.shield(asyncio.ensure_future(self._do(volume_id, work)))

    async def _do(self, volume_id: str, work: Callable[[Tree], T]) -> T:
        async with self._turn(volume_id):
            tree = self._trees.get(volume_id) or await self._open(volume_id)
            self._trees.move_to_end(volume_id)
            if tree.untidy:
                await self._run(tree.tidy)
            return await self._run(lambda: work(tree))

    def at_once(self, volume_id: str, work: Callable[[Tree], T]) -> T | None:
        """Run ``work``, which waits for no disk, here and now; None when the tree is busy, or not open."""
        tree = self._trees.get(volume_id)
        if tree is None or tree.untidy or self._turn(volume_id).locked():
            return None
        return work(tree)

    async def _open(self, volume_id: str) -> Tree:
        if await self._database.read(lambda conn: rows.get(conn, volume_id)) is None:
            raise VolumeUnknown(f"volume '{volume_id}' not found")
        unused = not self.in_use(volume_id)

        def opened() -> Tree:
            tree = Tree(self._directory / volume_id, self._limits)
            if unused:
                tree.purge()
            return tree

        tree = self._trees[volume_id] = await self._run(opened)
        await self._close_idle(volume_id)
        return tree

    async def _close_idle(self, but: str) -> None:
        for volume_id in list(self._trees):
            if len(self._trees) <= OPEN_MAX:
                return
            if volume_id != but and not self._turn(volume_id).locked() and not self._trees[volume_id].held:
                await self._run(self._trees.pop(volume_id).close)

    def _turn(self, volume_id: str) -> asyncio.Lock:
        return self._turns.setdefault(volume_id, asyncio.Lock())

    async def _run(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)
