"""Releases that go, because somebody says so or because a runner has more than are kept.

None goes that new runs get or may get, or that something has open: a sandbox that has not ended, a run that
goes on, or one whose machine is kept, so that it may go on. The rows go first, then the files, unless another
runner has the same ones; files that a crash left are removed by the next server as it opens.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from sqlalchemy import Connection

from wardian.model.errors import Conflict
from wardian.model.runner import Holder, Release, Runner
from wardian.runners.finding import find_runner, named_release
from wardian.runners.house import House
from wardian.runners.store import ReleaseStore
from wardian.store import agents, runners

_log = logging.getLogger(__name__)


class Removal:
    """``keep`` releases of each runner are kept, the newest; 0: all are. Whoever adds one has the ``turn``
    meanwhile, as its files may be those of one that goes."""

    def __init__(self, house: House, store: ReleaseStore, keep: int) -> None:
        self._house, self._store, self._keep = house, store, keep
        self.turn = asyncio.Lock()

    async def open(self) -> None:
        """Finish what an earlier server began."""
        known = await self._house.database.read(runners.digests)
        for digest in await asyncio.to_thread(self._store.collect, known):
            _log.info("the files of release %s, which is no more, are removed", digest[:16])

    async def remove(self, tenant: str, name: str, release: str) -> None:
        """Remove a release. Conflict: it is needed; by whom, and what to do."""

        def chosen(conn: Connection) -> Sequence[Release]:
            self._house.lease.fence(conn)
            runner = find_runner(conn, tenant, name)
            wanted = named_release(conn, runner, release)
            _check_not_given(runner, wanted)
            _check_not_held(conn, runner, [wanted])
            runners.remove_releases(conn, [wanted])
            return [wanted]

        await self._remove(chosen)

    async def remove_all(self, tenant: str, name: str) -> None:
        """Remove a runner with its releases. Conflict: an agent names it, or something has a release open."""

        def chosen(conn: Connection) -> Sequence[Release]:
            self._house.lease.fence(conn)
            runner = find_runner(conn, tenant, name)
            if (version := agents.first_with_runner(conn, tenant, (runner.id, runner.name))) is not None:
                agent, number = version
                raise Conflict(
                    f"version {number} of agent {agent} is run by runner {runner.name}",
                    code="runner_in_use",
                    hint=f"remove the agent first: `wardian agent rm {agent}`",
                )
            releases = runners.releases(conn, runner.id)
            _check_not_held(conn, runner, releases)
            runners.remove_releases(conn, releases)
            runners.remove(conn, runner.id)
            return releases

        await self._remove(chosen)

    async def sweep(self) -> int:
        """Remove what is more than is kept, as far as nobody needs it; how many that were."""
        if not self._keep:
            return 0

        def chosen(conn: Connection) -> Sequence[Release]:
            self._house.lease.fence(conn)
            held = runners.holders(conn)
            surplus = [
                release
                for runner in runners.all_of_them(conn)
                for release in runners.releases(conn, runner.id)[self._keep :]
                if _given(runner, release) is None and release.number not in held
            ]
            runners.remove_releases(conn, surplus)
            return surplus

        return await self._remove(chosen)

    async def _remove(self, chosen: runners.Choose) -> int:
        async with self.turn:
            gone = await self._house.database.write(chosen, durable=True)
            self._house.checkpoint("runner.removed")
            known = await self._house.database.read(runners.digests)
            for digest in {release.digest for release in gone} - known:
                await asyncio.to_thread(self._store.remove, digest)
        return len(gone)


def _given(runner: Runner, release: Release) -> tuple[str, str] | None:
    """What a release is to its runner, and how it ceases to be that."""
    match release.number:
        case runner.current:
            return "is what new runs get", f"let them get another one: `wardian runner use {runner.name} …`"
        case runner.canary:
            return "is the canary", f"end that first: `wardian runner canary {runner.name} --share 0`"
        case runner.previous:
            return "is the one to go back to", "it no longer is once new runs have got another one"
    return None


def _check_not_given(runner: Runner, release: Release) -> None:
    if (given := _given(runner, release)) is not None:
        what, hint = given
        raise Conflict(
            f"release {release.shown} of runner {runner.name} {what}", code="release_in_use", hint=hint
        )


def _check_not_held(conn: Connection, runner: Runner, releases: Sequence[Release]) -> None:
    held = runners.holders(conn)
    for release in releases:
        if (holder := held.get(release.number)) is not None:
            raise Conflict(
                f"{holder.kind} {holder.id} has release {release.shown} of runner {runner.name}",
                code="release_in_use",
                hint=_let_go(holder),
            )


def _let_go(holder: Holder) -> str:
    if holder.kind == "sandbox":
        return f"its programs may have it open: kill it first: `wardian sandbox kill {holder.id}`"
    if holder.over:
        return f"it may go on with the machine that is kept of it: `wardian run rm {holder.id}` first"
    return f"wait for its end, or `wardian run cancel {holder.id}`"


__all__ = ["Removal"]
