"""The verbs on runners: release, choose, put beside an environment, switch. Each takes the tenant first: what
is another tenant's is answered like what does not exist."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Connection

from wardian.guest.guest import Guest
from wardian.model.agent import check_name
from wardian.model.errors import Conflict, Invalid, LimitExceeded, WardianError
from wardian.model.runner import Place, Release, Runner
from wardian.model.sandbox import Sandbox, State
from wardian.runners.finding import find_runner, known_release, named_release
from wardian.runners.house import House
from wardian.runners.proving import RunnerFault, prove
from wardian.runners.removal import Removal
from wardian.runners.shelf import HELD_MAX, MOUNT, MOUNT_NAME, Shelf
from wardian.runners.store import Opened, ReleaseStore
from wardian.runners.tree import Tree
from wardian.sandboxes.identity import new_id
from wardian.store import runners

RUNNERS_MAX, RELEASES_MAX = 100, 10_000
"""Per tenant; per runner."""
MOUNT_S = 10.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Standing:
    """A release that counts in a sandbox, where it is seen there, and how long it took to put in."""

    release: Release
    opened: Opened
    path: str
    interpreter: str
    ms: float


class Runners:
    """The runners of a server. :meth:`open` before sandboxes are attached. ``keep``: :class:`Removal`."""

    def __init__(self, house: House, store: ReleaseStore, keep: int = 0) -> None:
        self._house, self._store = house, store
        self.removal = Removal(house, store, keep)
        self._shelves: dict[str, Shelf] = {}
        self._turns: dict[str, asyncio.Lock] = {}
        self._chores: set[asyncio.Task[None]] = set()
        self.switched: Callable[[Sandbox, Mapping[str, Any]], None] = lambda sandbox, facts: None
        """Told of every switch."""

    async def open(self) -> None:
        """Know again what stands beside sandboxes that are no run's, and answer for all from now on."""
        await self.removal.open()
        for place in await self._house.database.read(runners.places_of_sandboxes):
            await self._shelf(place)
        self._house.mounts.beside = self

    async def close(self) -> None:
        for chore in self._chores:
            chore.cancel()
        await asyncio.gather(*self._chores, return_exceptions=True)

    # ── releases

    async def release(
        self, tenant: str, tree: Tree, name: str | None = None, *, share: int | None = None
    ) -> tuple[Runner, Release]:
        """Keep a tree as a release of the runner of that name, its first one perhaps. New runs get it, or
        with ``share`` that many percent of them."""
        name = name or tree.manifest.name
        if name is None:
            raise Invalid("the runner has no name", code="runner_name_missing", hint="give --name")
        check_name(name)
        _check_share(share)
        now = self._house.now_us()

        def transaction(conn: Connection) -> tuple[Runner, Release]:
            self._house.lease.fence(conn)
            runner = runners.find(conn, tenant, name)
            if runner is None and len(runners.of_tenant(conn, tenant)) >= RUNNERS_MAX:
                raise LimitExceeded(f"you have {RUNNERS_MAX} runners, which is the limit")
            runner_id = new_id("n") if runner is None else runner.id
            known = runners.find_releases(conn, runner_id, digest)
            if not known and runners.count_releases(conn, runner_id) >= RELEASES_MAX:
                raise LimitExceeded(
                    f"runner {name} has {RELEASES_MAX} releases, which is the limit",
                    hint=f"`wardian runner rm {name} RELEASE`, or keep fewer: WARDIAN_RUNNER_RELEASES_KEEP",
                )
            made = known[0] if known else runners.add_release(conn, _release(runner_id, digest, tree, now))
            if runner is None:
                runner = Runner(runner_id, tenant, name, made.number, now)
                runners.add(conn, runner)
            elif share is None:
                runner = _choose(conn, runner, made.number)
            else:
                runner = _try(conn, runner, made.number, share)
            return runner, made

        async with self.removal.turn:
            digest = await asyncio.to_thread(self._store.keep, tree)
            return await self._house.database.write(transaction, durable=True)

    async def list(self, tenant: str) -> Sequence[tuple[Runner, Release]]:
        """By name, each with its current release."""

        def query(conn: Connection) -> Sequence[tuple[Runner, Release]]:
            return [(each, known_release(conn, each.current)) for each in runners.of_tenant(conn, tenant)]

        return await self._house.database.read(query)

    async def get(self, tenant: str, name: str) -> tuple[Runner, Sequence[Release]]:
        """A runner and its releases, the newest first. Raises NotFound."""

        def query(conn: Connection) -> tuple[Runner, Sequence[Release]]:
            runner = find_runner(conn, tenant, name)
            return runner, runners.releases(conn, runner.id)

        return await self._house.database.read(query)

    async def use(self, tenant: str, name: str, release: str) -> Runner:
        """Let new runs get a release, an older one perhaps. A canary is over then."""

        def transaction(conn: Connection) -> Runner:
            self._house.lease.fence(conn)
            runner = find_runner(conn, tenant, name)
            return _choose(conn, runner, named_release(conn, runner, release).number)

        return await self._house.database.write(transaction, durable=True)

    async def canary(self, tenant: str, name: str, release: str | None, share: int) -> Runner:
        """Let a share of new runs get a release; 0 percent: none."""
        _check_share(share)

        def transaction(conn: Connection) -> Runner:
            self._house.lease.fence(conn)
            runner = find_runner(conn, tenant, name)
            if share == 0:
                return _try(conn, runner, None, 0)
            if release is None:
                raise Invalid("a canary is a release: name it", code="release_missing")
            return _try(conn, runner, named_release(conn, runner, release).number, share)

        return await self._house.database.write(transaction, durable=True)

    async def roll_back(self, runner: Runner, release: Release, why: str, run_id: str) -> None:
        """A canary failed where the current release passed: no run gets it any more."""
        told = {"release": release.digest, "why": why[:2000], "run": run_id, "at": self._house.now_us()}

        def transaction(conn: Connection) -> None:
            self._house.lease.fence(conn)
            now = runners.find(conn, runner.tenant, runner.id)
            if now is not None and now.canary == release.number:
                runners.change(conn, runner.id, canary=None, share=0, rolled_back=told)

        await self._house.database.write(transaction, durable=True)
        _log.warning("runner %s: canary %s is rolled back: %s", runner.name, release.shown, why)

    async def release_of(self, number: int) -> Release:
        return await self._house.database.read(lambda conn: known_release(conn, number))

    # ── beside an environment

    async def swap(
        self, tenant: str, sandbox_id: str, name: str | None, release: str | None
    ) -> Standing | Release:
        """Put a release beside a sandbox's environment: into a running one now, into a paused one when it is
        resumed (the release alone is returned then). Processes that run keep what they run.

        Raises :class:`RunnerFault` when it does not work there; what stood there before still does.
        """
        sandbox = await self._house.sandboxes.get(tenant, sandbox_id)
        owner = owner_of(sandbox)

        def query(conn: Connection) -> tuple[Place | None, Runner, Release]:
            place = runners.place(conn, owner)
            reference = name or (None if place is None else place.runner_id)
            if reference is None:
                raise Invalid(
                    f"sandbox {sandbox_id} has no runner yet", code="runner_missing", hint="name one"
                )
            runner = find_runner(conn, tenant, reference)
            wanted = (
                known_release(conn, runner.current)
                if release is None
                else named_release(conn, runner, release)
            )
            return place, runner, wanted

        place, runner, wanted = await self._house.database.read(query)
        if sandbox.state is State.PAUSED:
            later = place or Place(owner, runner.id)
            await self._put(replace(later, runner_id=runner.id, wanted=wanted.number))
            await self._shelf(later, sandbox)
            return wanted
        async with self._house.sandboxes.guest(sandbox_id) as guest:
            return await self.put(sandbox, guest, runner, wanted)

    async def put(self, sandbox: Sandbox, guest: Guest, runner: Runner, release: Release) -> Standing:
        """Stage a release beside a sandbox's environment, let it prove itself, and switch to it.

        Raises :class:`RunnerFault` and :class:`ReleaseDamaged`; nothing is other than before then.
        """
        owner, began = owner_of(sandbox), time.perf_counter()
        self._forget_the_gone()
        async with self._turns.setdefault(owner, asyncio.Lock()):
            opened = await self._opened(release)
            shelf = self._shelves.get(owner) or await self._find_shelf(sandbox, runner)
            place = Place(owner, runner.id, shelf.current, shelf.held)
            shelf.stage(release, opened)
            self._house.checkpoint("runner.staged")
            try:
                interpreter = await self._prove(sandbox, guest, shelf, release, opened)
                self._house.checkpoint("runner.proved")
                await self._record(sandbox, runner, release, place)
            except BaseException:
                if release.number not in place.held:
                    shelf.drop(release.number)
                raise
            self._house.checkpoint("runner.recorded")
            shelf.current = release.number
            for number in shelf.held:
                if number not in _held(place, release):
                    shelf.drop(number)
            self._house.checkpoint("runner.switched")
        ms = (time.perf_counter() - began) * 1000
        facts = {"runner": runner.name, "release": release.digest, "ms": round(ms, 1)}
        self._house.sandboxes.record(sandbox.id, "runner.switched", facts)
        self.switched(sandbox, facts)
        return Standing(release, opened, shelf.path_of(release), interpreter, ms)

    async def _prove(
        self, sandbox: Sandbox, guest: Guest, shelf: Shelf, release: Release, opened: Opened
    ) -> str:
        try:
            async with asyncio.timeout(MOUNT_S):
                await self._mount(guest, shelf)
        except (WardianError, TimeoutError) as error:
            raise RunnerFault(
                f"nothing can be mounted at {MOUNT}: {error or 'no answer'}", code="runner_not_seen"
            ) from error
        env = self._house.environment(sandbox)
        user = sandbox.surroundings.user
        path = shelf.path_of(release)
        with shelf.trial(opened) as challenge:
            return await prove(guest, opened, path, challenge, user=user, env=env)

    async def _mount(self, guest: Guest, shelf: Shelf) -> None:
        if guest not in shelf.guests:
            await self._house.mounts.mount_readable(guest, MOUNT, MOUNT_NAME, shelf)
            shelf.guests.add(guest)

    async def _record(self, sandbox: Sandbox, runner: Runner, release: Release, place: Place) -> None:
        """The switch, as it survives everything; at a run, too."""
        after = Place(place.owner, runner.id, release.number, _held(place, release))
        told = {"name": runner.name, "release": release.digest, "version": release.version}

        def transaction(conn: Connection) -> None:
            self._house.lease.fence(conn)
            known_release(conn, release.number)  # or it was removed meanwhile
            runners.put_place(conn, after)
            if (run := _run_of(sandbox)) is not None:
                runners.note_release(conn, run, told | {"number": release.number, "proved": True})
            if release.good_at is None:
                runners.change_release(conn, release.number, good_at=self._house.now_us())

        await self._house.database.write(transaction)

    async def _put(self, place: Place) -> None:
        def transaction(conn: Connection) -> None:
            self._house.lease.fence(conn)
            if place.wanted is not None:
                known_release(conn, place.wanted)
            runners.put_place(conn, place)

        await self._house.database.write(transaction, durable=True)

    # ── attaching

    async def mount(self, sandbox: Sandbox, guest: Guest) -> bool:
        """Mount what stands beside a sandbox that is being attached to, and switch soon to what is wanted."""
        owner = owner_of(sandbox)
        if owner not in self._shelves and _run_of(sandbox) is None:
            return False
        place = await self._house.database.read(lambda conn: runners.place(conn, owner))
        if place is None:
            return False
        shelf = await self._shelf(place, sandbox)
        if shelf.held:
            await self._mount(guest, shelf)
        if place.wanted is not None:
            self._soon(self._catch_up(sandbox, place, place.wanted))
        return bool(shelf.held)

    async def inherit(self, parent: Sandbox, child: Sandbox) -> None:
        """A fork goes on with the release that its parent has."""
        if (shelf := self._shelves.get(owner_of(parent))) is None or not shelf.held:
            return

        def transaction(conn: Connection) -> Place | None:
            self._house.lease.fence(conn)
            runners.copy_place(conn, owner_of(parent), owner_of(child))
            return runners.place(conn, owner_of(child))

        if (place := await self._house.database.write(transaction)) is not None:
            await self._shelf(place, child)

    async def _catch_up(self, sandbox: Sandbox, place: Place, wanted: int) -> None:
        """What was asked for while it was paused. If that does not work, it is told, and not tried again."""
        try:
            release = await self.release_of(wanted)
            runner = await self._house.database.read(
                lambda conn: find_runner(conn, sandbox.tenant, place.runner_id)
            )
            async with self._house.sandboxes.guest(sandbox.id) as guest:
                await self.put(sandbox, guest, runner, release)
        except WardianError as error:
            facts = {"number": wanted, "code": error.code, "why": str(error)[:1000]}
            self._house.sandboxes.record(sandbox.id, "runner.failed", facts)
            _log.info("sandbox %s: %s", sandbox.id, error)
            await self._put(replace(place, wanted=None))

    async def _shelf(self, place: Place, sandbox: Sandbox | None = None) -> Shelf:
        """What stands there, as far as it is on record and whole."""
        shelf = self._shelves.get(place.owner)
        if shelf is None:
            shelf = Shelf(of_run=sandbox is not None and _run_of(sandbox) is not None)
            for number in place.held:
                release = await self.release_of(number)
                try:
                    shelf.stage(release, await self._opened(release))
                except WardianError as error:
                    _log.error("beside %s: %s", place.owner, error)
            shelf.current = place.current
            shelf = self._shelves.setdefault(place.owner, shelf)
        return shelf

    async def _find_shelf(self, sandbox: Sandbox, runner: Runner) -> Shelf:
        owner = owner_of(sandbox)
        place = await self._house.database.read(lambda conn: runners.place(conn, owner))
        return await self._shelf(place or Place(owner, runner.id), sandbox)

    async def _opened(self, release: Release) -> Opened:
        """Raises :class:`ReleaseDamaged`."""
        known = self._store.known(release.digest)
        return known if known is not None else await asyncio.to_thread(self._store.open, release.digest)

    def forget(self, owner: str) -> None:
        """A run or sandbox is over. What is on record of it stays."""
        self._shelves.pop(owner, None)
        self._turns.pop(owner, None)

    def _forget_the_gone(self) -> None:
        live = self._house.sandboxes.find_live
        for owner, shelf in list(self._shelves.items()):
            if not shelf.of_run and live(owner) is None:
                self.forget(owner)

    def _soon(self, work: Coroutine[Any, Any, None]) -> None:
        chore = asyncio.ensure_future(work)
        self._chores.add(chore)
        chore.add_done_callback(self._over)

    def _over(self, chore: asyncio.Task[None]) -> None:
        self._chores.discard(chore)
        if not chore.cancelled() and (error := chore.exception()) is not None:
            _log.error("a switch after a resume: %s", error, exc_info=error)


def owner_of(sandbox: Sandbox) -> str:
    """Whom it stands beside: a run keeps it over all its machines."""
    return _run_of(sandbox) or sandbox.id


def _run_of(sandbox: Sandbox) -> str | None:
    """The run whose entry is run in a sandbox; a workflow's drives many, each of which is one of its own."""
    return None if sandbox.spec.driven else sandbox.spec.run


def _held(place: Place, release: Release) -> tuple[int, ...]:
    """What may be open from now on: the oldest go first, but not the one that counted until now."""
    kept = [number for number in place.held if number not in (release.number, place.current)]
    before = [] if place.current in (None, release.number) else [place.current]
    return (*kept[-(HELD_MAX - 2) :], *(number for number in before if number is not None), release.number)


def _release(runner_id: str, digest: str, tree: Tree, now: int) -> Release:
    files = sum(not each.is_directory for each in tree.entries)
    said = tree.manifest
    return Release(0, runner_id, digest, said.version, said.language, files, tree.size, now)


def _choose(conn: Connection, runner: Runner, number: int) -> Runner:
    previous = runner.previous if number == runner.current else runner.current
    runners.change(conn, runner.id, current=number, previous=previous, canary=None, share=0)
    return replace(runner, current=number, previous=previous, canary=None, share=0)


def _try(conn: Connection, runner: Runner, canary: int | None, share: int) -> Runner:
    if canary == runner.current:
        raise Conflict("that release is the current one", code="canary_is_current")
    runners.change(conn, runner.id, canary=canary, share=share, rolled_back=None)
    return replace(runner, canary=canary, share=share, rolled_back=None)


def _check_share(share: int | None) -> None:
    if share is not None and not 0 <= share <= 100:
        raise Invalid("a share is between 0 and 100 percent", code="bad_share")


__all__ = ["Runners", "Standing", "owner_of"]
