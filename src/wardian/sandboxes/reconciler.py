"""After a start: make what is recorded and what is there agree again.

Runs once, under a fresh lease, before anything is served. For every sandbox that has not ended it
re-attaches to the machine or finds it dead, then finishes or undoes the act that was under way:

| found in | repair |
|---|---|
| creating | nobody was told of it: end it |
| running, frozen | re-attach; if the machine is dead, end it as of the last heartbeat |
| snapshotting | the same, and drop what was half-written: the caller was not answered |
| pausing | with the snapshot published: finish the pause; else wake the machine |
| paused | nothing to do |
| resuming | back to paused: the snapshot is intact |
| killing | go on |

Then it sweeps: machines that belong to no sandbox, snapshots that no row names.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from wardian.isolation.port import Driver, MachineGone
from wardian.model.errors import WardianError
from wardian.model.sandbox import EndReason, Event, State
from wardian.sandboxes.acts import create, pause
from wardian.sandboxes.acts import end as ending
from wardian.sandboxes.machines import attached_to, destroy
from wardian.sandboxes.owner import Owner
from wardian.sandboxes.workshop import Workshop
from wardian.store import intents, intervals, snapshots
from wardian.store.intents import Intent

CONCURRENCY = 8

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a reconciliation did, for the log and the tests."""

    attached: tuple[str, ...]
    lost: tuple[str, ...]
    swept_machines: tuple[str, ...]
    swept_snapshots: tuple[str, ...]


async def reconcile(works: Workshop, owners: Mapping[str, Owner]) -> Outcome:
    """Repair every owner's sandbox, then sweep what nobody owns."""
    open_intents = {i.sandbox_id: i for i in await works.database.read(intents.open_ones)}
    opened = await works.database.read(intervals.opened_at)
    before = {owner.sandbox.id: owner.sandbox.state for owner in owners.values()}
    slots = asyncio.Semaphore(CONCURRENCY)

    async def repair(owner: Owner) -> None:
        owner.last_at = max(owner.last_at, opened.get(owner.sandbox.id, 0))
        async with slots:
            await owner.turn(lambda: _repair(owner, open_intents.get(owner.sandbox.id)))

    await asyncio.gather(*(repair(owner) for owner in owners.values()))
    swept_machines = await works.drivers.sweep(_machines_of(owners.values()))
    kept = await works.database.read(snapshots.all_ids)
    swept_snapshots = await works.snapshots.collect(kept)
    outcome = Outcome(
        attached=tuple(o.sandbox.id for o in owners.values() if o.machine is not None),
        lost=tuple(
            o.sandbox.id
            for o in owners.values()
            if o.sandbox.state is State.ENDED and before[o.sandbox.id] is not State.KILLING
        ),
        swept_machines=tuple(swept_machines),
        swept_snapshots=tuple(swept_snapshots),
    )
    _log.info(
        "reconciled: %d attached, %d lost, %d machines and %d snapshots swept",
        *(len(x) for x in (outcome.attached, outcome.lost, swept_machines, swept_snapshots)),
    )
    return outcome


def _machines_of(owners: Collection[Owner]) -> Mapping[str, Collection[str]]:
    """The machines that belong to a sandbox, by driver."""
    known: dict[str, set[str]] = {}
    for owner in owners:
        if owner.machine is not None:
            known.setdefault(owner.sandbox.driver, set()).add(owner.machine.id)
    return known


async def _repair(owner: Owner, intent: Intent | None) -> None:
    match owner.sandbox.state:
        case State.CREATING:
            await create.give_up(owner, "the server stopped meanwhile", at=_last_known(owner))
        case State.RUNNING | State.FROZEN:
            await _reattach(owner)
        case State.SNAPSHOTTING:
            await owner.commit(Event.SNAPSHOT_DONE, outcome="undone: the server stopped meanwhile")
            await _reattach(owner)
        case State.PAUSING:
            await _repair_pause(owner, intent)
        case State.RESUMING:
            await owner.commit(Event.RESUME_FAILED, outcome="undone: the server stopped meanwhile")
        case State.KILLING:
            await _repair_end(owner, intent)


async def _repair_pause(owner: Owner, intent: Intent | None) -> None:
    works = owner.works
    snapshot_id = str(intent.data["snapshot"]) if intent is not None else ""
    if snapshot_id and works.snapshots.exists(snapshot_id):
        try:
            manifest, _ = await works.snapshots.load(snapshot_id)
        except WardianError as error:
            _log.warning("sandbox %s: its pause cannot be finished: %s", owner.sandbox.id, error)
        else:
            await pause.finish(owner, manifest, manifest.digest)
            return
    await owner.commit(Event.PAUSE_FAILED, outcome="undone: the server stopped meanwhile")
    await _reattach(owner)


async def _repair_end(owner: Owner, intent: Intent | None) -> None:
    data = intent.data if intent is not None else {}
    reason = EndReason(data.get("reason", EndReason.KILLED.value))
    await _destroy_recorded(owner)
    await ending.finish(owner, reason, data.get("snapshot"))


async def _reattach(owner: Owner) -> None:
    """Take the sandbox's machine over from the process before us; without one, the sandbox is over."""
    works, sandbox = owner.works, owner.sandbox
    machine = guest = None
    try:
        if sandbox.machine is None:
            raise MachineGone("its machine is not on record")
        machine = await _driver_of(owner).attach(sandbox.machine)
        await machine.thaw()
        guest = works.pool.new_guest(machine)
        await attached_to(owner, sandbox.epoch, None)(guest)
    except Exception as error:  # one sandbox that cannot be had must not keep all others from being served
        _log.warning(
            "sandbox %s is lost: %s", sandbox.id, error, exc_info=not isinstance(error, WardianError)
        )
        await destroy(machine, guest)
        reason = {"reason": EndReason.MACHINE_LOST.value, "detail": str(error)}
        await owner.commit(Event.MACHINE_LOST, facts=reason, at=_last_known(owner))
        await ending.finish(owner, EndReason.MACHINE_LOST, None, at=_last_known(owner))
        return
    if sandbox.state is State.FROZEN:
        await owner.commit(Event.THAW)
    owner.adopt(machine, guest)


def _driver_of(owner: Owner) -> Driver:
    """What made its machine, even if it would make no other now."""
    name = owner.sandbox.driver
    driver = owner.works.drivers.named(name)
    if driver is None:
        raise MachineGone(f"its driver, {name}, is not there: {owner.works.drivers.host(name).reason}")
    return driver


async def _destroy_recorded(owner: Owner) -> None:
    record = owner.sandbox.machine
    if record is None:
        return
    try:
        machine = await _driver_of(owner).attach(record)
    except WardianError:
        return  # dead already; what it left is swept
    await destroy(machine)


def _last_known(owner: Owner) -> int:
    """The last moment at which the recorded state was certainly true: nobody pays for what came after."""
    heartbeat = owner.works.lease.last_heartbeat_at
    return owner.last_at if heartbeat is None else max(owner.last_at, heartbeat)
