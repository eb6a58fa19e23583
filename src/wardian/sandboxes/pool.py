"""Machines that wait: *created* ones for any start or restore, *hot* ones of builds that are in use.

A created member is booted, empty and parked. A hot member has a build of a template in it, its guest is
attached at epoch 0, and it is frozen: it costs memory and no CPU. Neither knows a tenant: identity is applied
at hand-out.

Hot members of what is always kept warm are there from the start; those of any other build from its first use
until it has not been used for ``WARM_FOR_S``. All of them together stay within a bound on memory: for want of
room, the build that was used longest ago gives way.

Members are refilled in the background, one at a time and preferably while nobody waits for a machine. How
many are kept follows demand (takes within the last ``DEMAND_WINDOW_S``) within the bounds given. A member
that died while it waited is dropped and replaced; it is never handed out.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Generic, TypeVar

from wardian.guest.guest import Guest, ProcessConfig
from wardian.isolation.port import Driver, ImageRefused, Machine, MachineImage, MachineSpec, Prepared
from wardian.model.errors import WardianError
from wardian.sandboxes.identity import identity_of_nobody

DEMAND_WINDOW_S = 10.0
RETRY_S = 5.0  # after a refill that failed
WARM_FOR_S = 600.0  # after its last use, a build that is not always kept warm
REHEARSAL_S = 10.0
REST_S = 0.05  # after a machine was taken, before the next is made
PATIENCE_S = 0.25  # a refill waits at most this long for the foreground, then goes ahead

_log = logging.getLogger(__name__)
_M = TypeVar("_M")
_T = TypeVar("_T")
_Kind = tuple[str, _T]
"""What members that are as good as each other have in common, after the name of their driver."""

Load = Callable[[], Awaitable[MachineImage]]
"""Loads (and verifies) the image a machine is to be restored from."""

Attach = Callable[[Guest], Awaitable[None]]
"""Makes a guest somebody's: sets its callbacks and attaches it with an epoch and an identity."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """How many members to keep: ``low`` always, up to ``high`` under demand."""

    low: int
    high: int

    def at_least(self, low: int | None) -> Bounds:
        """The same with another ``low``, if one is given, which ``high`` is then no less than."""
        return self if low is None else Bounds(low, max(low, self.high))


@dataclass(frozen=True, slots=True)
class PoolLimits:
    """Bounds per driver and machine spec (created) or build (hot), and how many machines are made at once.

    ``memory_mib`` bounds what the hot members' memories may add up to (None: nothing does). ``rehearsal`` is
    run once in every hot member before it waits.
    """

    created: Bounds = Bounds(1, 4)
    hot: Bounds = Bounds(2, 16)
    concurrency: int = 3
    memory_mib: int | None = None
    rehearsal: ProcessConfig | None = None


@dataclass(frozen=True, slots=True)
class Source:
    """What a machine is made by and from: its spec, and an image to restore or None to boot the root image.

    With a ``build_id`` a hot member of that build will do. ``files`` finds a layer that whoever attaches the
    guest of the booted root image lays over it. ``ready`` is the template's ready check: a hot
    member passes it before it waits, so that whatever answers it has its pages in memory.
    """

    driver: Driver
    spec: MachineSpec
    load: Load | None = None
    build_id: str | None = None
    files: Callable[[], Awaitable[Path]] | None = None
    ready: str = ""


@dataclass(eq=False, slots=True)
class _Hot:
    machine: Machine
    guest: Guest
    watch: asyncio.Task[None] | None = None


@dataclass(frozen=True, slots=True)
class Reservation:
    """A hot member that is being woken for somebody. It must be used by ``obtain``, or released."""

    hot: _Hot
    waking: asyncio.Task[None]


@dataclass(slots=True)
class _Shelf(Generic[_M]):
    """The waiting members of one kind, and the demand for them."""

    bounds: Bounds
    source: Source
    always: bool = True
    members: deque[_M] = field(default_factory=deque)
    takes: deque[float] = field(default_factory=deque)
    last_take: float = 0.0

    def surplus(self, now: float) -> int:
        """How many members there are too many (below zero: too few)."""
        while self.takes and self.takes[0] < now - DEMAND_WINDOW_S:
            self.takes.popleft()
        if self.is_unused(now):
            return len(self.members)
        return len(self.members) - min(self.bounds.high, self.bounds.low + len(self.takes))

    def is_unused(self, now: float) -> bool:
        """Whether nobody has asked for long enough that nothing need be kept."""
        return not self.always and self.last_take < now - WARM_FOR_S

    @property
    def memory_mib(self) -> int:
        """What one more member may take."""
        return self.source.spec.resources.memory_mib


class Pool:
    """The waiting machines of every driver. ``start`` begins refilling, ``close`` destroys every member."""

    def __init__(self, limits: PoolLimits, *, new_guest: Callable[[Machine], Guest] | None = None) -> None:
        self._limits = limits
        self.new_guest = new_guest or (lambda machine: Guest(machine.link))
        self._created: dict[_Kind[MachineSpec], _Shelf[Prepared]] = {}
        self._hot: dict[_Kind[str], _Shelf[_Hot]] = {}
        self._slots = asyncio.Semaphore(limits.concurrency)
        self._waiting = 0
        self._quiet = asyncio.Event()
        self._quiet.set()
        self._work = asyncio.Event()
        self._full = asyncio.Event()
        self._last_take = 0.0
        self._refiller: asyncio.Task[None] | None = None
        self._unused_timer: asyncio.TimerHandle | None = None
        self._timers: set[asyncio.TimerHandle] = set()

    def start(self) -> None:
        """Begin to fill."""
        self._refiller = asyncio.create_task(self._refill_forever(), name="pool refill")

    def keep_warm(self, kept: Iterable[tuple[Source, int | None]]) -> None:
        """From now on always keep hot members of these sources' builds, and created ones of their specs.

        As many as given (None: as many as is usual). What was kept before stays as long as it is used.
        """
        for shelf in self._hot.values():
            shelf.always = False
        for source, low in kept:
            shelf = self._shelf_for(source)
            shelf.always = True
            shelf.bounds = self._limits.hot.at_least(low)
            empty = Source(source.driver, source.spec)
            self._created.setdefault((empty.driver.name, empty.spec), _Shelf(self._limits.created, empty))
        self._watch_for_unused()
        self._wake()

    def _shelf_for(self, source: Source) -> _Shelf[_Hot]:
        """Where hot members of a build wait; made when there is none, to be kept while it is used."""
        assert source.build_id is not None
        kind = source.driver.name, source.build_id
        if (shelf := self._hot.get(kind)) is None:
            bounds = replace(self._limits.hot, low=min(self._limits.hot.low, 1))
            shelf = self._hot[kind] = _Shelf(bounds, source, always=False)
            self._watch_for_unused()
        return shelf

    async def drop(self, build_id: str) -> None:
        """Keep no more hot members of a build, and destroy the ones there are."""
        shelves = [self._hot.pop(kind) for kind in list(self._hot) if kind[1] == build_id]
        await asyncio.gather(*(self._destroy(hot) for shelf in shelves for hot in shelf.members))

    def _wake(self) -> None:
        """There may be something to do: let the refiller look."""
        self._full.clear()
        self._work.set()

    def waiting(self) -> tuple[int, int]:
        """How many members wait: created, hot."""
        return (
            sum(len(shelf.members) for shelf in self._created.values()),
            sum(len(shelf.members) for shelf in self._hot.values()),
        )

    async def filled(self) -> None:
        """Return when every shelf holds what it should (or a refill failed)."""
        await self._full.wait()

    def reserve(self, source: Source) -> Reservation | None:
        """Begin to wake a hot member, so that it is awake by the time the caller's intent is written."""
        hot = self._take_hot(source)
        if hot is None:
            return None
        return Reservation(hot, asyncio.create_task(hot.machine.thaw(), name="pool wake"))

    async def release(self, reservation: Reservation) -> None:
        """Destroy a reserved member that nobody wants after all."""
        await asyncio.wait({reservation.waking})
        await self._destroy(reservation.hot)

    async def obtain(
        self, source: Source, attach: Attach, reservation: Reservation | None = None
    ) -> tuple[Machine, Guest]:
        """A machine made from ``source``, its guest attached by ``attach``.

        A hot member if there is one, else a created one, else a new one. Whatever fails to attach is
        destroyed; a dead member is replaced.
        """
        while (reservation := reservation or self.reserve(source)) is not None:
            hot, waking = reservation.hot, reservation.waking
            reservation = None
            try:
                await waking
                await attach(hot.guest)
                return hot.machine, hot.guest
            except Exception:
                _log.warning("a waiting machine was no good; taking another", exc_info=True)
                await self._destroy(hot)
            except BaseException:
                await asyncio.shield(self._destroy(hot))
                raise
        async with self._foreground():
            machine = await self._make(source)
        return machine, await self._attached(machine, attach)

    async def _attached(self, machine: Machine, attach: Attach) -> Guest:
        guest = self.new_guest(machine)
        try:
            await attach(guest)
        except BaseException:
            await asyncio.shield(self._destroy(_Hot(machine, guest)))
            raise
        return guest

    async def _make(self, source: Source) -> Machine:
        image = None if source.load is None else await source.load()
        member = self._take_created(source)
        if member is not None:
            try:
                return await _become(member, image)
            except ImageRefused:
                raise
            except Exception:
                _log.warning("a created machine was no good; making another", exc_info=True)
        return await _become(await source.driver.prepare(source.spec), image)

    def _take_hot(self, source: Source) -> _Hot | None:
        shelf = self._shelf_of(source)
        if shelf is None:
            return None
        self._note_take(shelf)
        if not shelf.members:
            return None
        hot = shelf.members.popleft()
        if hot.watch is not None:
            hot.watch.cancel()
        return hot

    def _shelf_of(self, source: Source) -> _Shelf[_Hot] | None:
        """Where hot members of a source wait: from its first use on, if it is a build."""
        if source.build_id is None:
            return None
        if not self._limits.hot.high:
            return self._hot.get((source.driver.name, source.build_id))
        return self._shelf_for(source)

    def _watch_for_unused(self) -> None:
        """Look again when the shelves that are not always kept may have become unused."""
        if self._unused_timer is None:
            loop = asyncio.get_running_loop()
            self._unused_timer = loop.call_later(WARM_FOR_S + 0.05, self._look_for_unused)

    def _look_for_unused(self) -> None:
        self._unused_timer = None
        self._wake()
        if not all(shelf.always for shelf in self._hot.values()):
            self._watch_for_unused()

    def _take_created(self, source: Source) -> Prepared | None:
        shelf = self._created.get((source.driver.name, source.spec))
        if shelf is None:
            return None
        self._note_take(shelf)
        return shelf.members.popleft() if shelf.members else None

    def _note_take(self, shelf: _Shelf[_M]) -> None:
        self._last_take = time.monotonic()
        shelf.takes.append(self._last_take)
        shelf.last_take = self._last_take
        self._wake()
        self._look_again_in(DEMAND_WINDOW_S)  # demand will have fallen

    @asynccontextmanager
    async def _foreground(self) -> AsyncIterator[None]:
        """While somebody waits for a machine, refills hold back."""
        self._waiting += 1
        self._quiet.clear()
        try:
            async with self._slots:
                yield
        finally:
            self._waiting -= 1
            if not self._waiting:
                self._quiet.set()

    async def _refill_forever(self) -> None:
        while True:
            await self._work.wait()
            self._work.clear()
            try:
                while (step := self._next_step()) is not None:
                    await self._wait_for_quiet()
                    await step()
            except Exception:
                _log.warning("the pool could not be refilled; trying again", exc_info=True)
                self._look_again_in(RETRY_S)
            if not self._work.is_set():
                self._full.set()

    async def _wait_for_quiet(self) -> None:
        """Let the foreground go first: whoever just took a machine is about to use it."""
        patience_until = time.monotonic() + PATIENCE_S
        while (now := time.monotonic()) < patience_until:
            if self._waiting:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(patience_until - now):
                        await self._quiet.wait()
            elif (rest := self._last_take + REST_S - now) > 0:
                await asyncio.sleep(min(rest, patience_until - now))
            else:
                return

    def _next_step(self) -> Callable[[], Awaitable[None]] | None:
        """What to do next to bring some shelf nearer to its demand: hot ones first."""
        now = time.monotonic()
        for kind, hot_shelf in list(self._hot.items()):
            surplus = hot_shelf.surplus(now)
            if surplus < 0 and (step := self._make_room(hot_shelf)) is not None:
                return step
            if surplus > 0:
                return partial(self._destroy, hot_shelf.members.pop())
            if hot_shelf.is_unused(now):
                del self._hot[kind]
        for shelf in self._created.values():
            surplus = shelf.surplus(now)
            if surplus < 0:
                return partial(self._add_created, shelf)
            if surplus > 0:
                return shelf.members.pop().discard
        return None

    def _make_room(self, shelf: _Shelf[_Hot]) -> Callable[[], Awaitable[None]] | None:
        """One more member of ``shelf``; or one less of what was used before it, if memory is short."""
        most = self._limits.memory_mib
        taken = sum(len(each.members) * each.memory_mib for each in self._hot.values())
        if most is None or taken + shelf.memory_mib <= most:
            return partial(self._add_hot, shelf)
        older = [each for each in self._hot.values() if each.members and each.last_take < shelf.last_take]
        if not older or shelf.memory_mib > most:
            return None
        return partial(self._destroy, min(older, key=lambda each: each.last_take).members.pop())

    async def _add_created(self, shelf: _Shelf[Prepared]) -> None:
        prepared = await shelf.source.driver.prepare(shelf.source.spec)
        try:
            await prepared.park()
        except BaseException:
            await asyncio.shield(prepared.discard())
            raise
        shelf.members.append(prepared)

    async def _add_hot(self, shelf: _Shelf[_Hot]) -> None:
        source = shelf.source
        kind = source.driver.name, source.build_id or ""
        if self._hot.get(kind) is not shelf:
            return
        self._hot[kind] = self._hot.pop(kind)  # behind the others, which must not starve if this fails
        image = None if source.load is None else await source.load()
        machine = await _become(await source.driver.prepare(source.spec), image)
        nobody = identity_of_nobody(source.build_id or "")
        guest = await self._attached(machine, lambda guest: guest.attach(0, nobody))
        hot = _Hot(machine, guest)
        try:
            await self._rehearse(guest, source.ready)
            await machine.freeze()
        except BaseException:
            await asyncio.shield(self._destroy(hot))
            raise
        if self._hot.get(kind) is not shelf:  # dropped meanwhile
            await self._destroy(hot)
            return
        hot.watch = asyncio.create_task(self._watch(shelf, hot), name=f"pool watch {machine.id}")
        shelf.members.append(hot)

    async def _rehearse(self, guest: Guest, ready: str) -> None:
        """Run what a new owner is likely to run first, so its pages are there; nothing else of it stays."""
        if (config := self._limits.rehearsal) is None:
            return
        if ready:
            config = replace(config, args=("-l", "-c", ready))
        async with asyncio.timeout(REHEARSAL_S):
            try:
                process = await guest.exec(config)
            except WardianError as error:  # an image without a shell serves all the same
                _log.info("no rehearsal: %s", error)
                return
            async for _ in process.subscribe():
                pass

    async def _watch(self, shelf: _Shelf[_Hot], hot: _Hot) -> None:
        """Drop a member that dies while it waits."""
        await hot.machine.wait()
        if hot in shelf.members:
            shelf.members.remove(hot)
            hot.watch = None
            await self._destroy(hot)
            self._wake()

    async def _destroy(self, hot: _Hot) -> None:
        if hot.watch is not None:
            hot.watch.cancel()
        await hot.guest.close()
        await hot.machine.kill()

    def _look_again_in(self, delay_s: float) -> None:
        def look() -> None:
            self._timers.discard(timer)
            self._wake()

        if len(self._timers) < 2:  # one timer is enough to notice everything it covers
            timer = asyncio.get_running_loop().call_later(delay_s + 0.05, look)
            self._timers.add(timer)

    async def close(self) -> None:
        """Stop refilling and destroy every member."""
        for timer in (*self._timers, self._unused_timer):
            if timer is not None:
                timer.cancel()
        if self._refiller is not None:
            self._refiller.cancel()
            await asyncio.gather(self._refiller, return_exceptions=True)
        hot = [member for shelf in self._hot.values() for member in shelf.members]
        created = [member for shelf in self._created.values() for member in shelf.members]
        self._hot.clear()
        self._created.clear()
        await asyncio.gather(
            *(self._destroy(member) for member in hot), *(member.discard() for member in created)
        )


async def _become(prepared: Prepared, image: MachineImage | None) -> Machine:
    """Turn an empty machine into a running one; if that fails, nothing of it stays."""
    try:
        return await (prepared.start() if image is None else prepared.restore(image))
    except BaseException:
        await asyncio.shield(prepared.discard())
        raise
