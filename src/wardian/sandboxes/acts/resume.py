"""Resume: a new machine is restored from the snapshot, under a higher epoch.

From a snapshot of files alone, or when a reboot is asked for, it is booted from the root image instead, with
the files laid over it. To reboot from a snapshot with memory, a machine that nobody sees is restored once
more to read its files.

The snapshot is only removed after the row says ``running``. So a failed resume, or a crash before that,
leaves the sandbox paused and intact; a machine that was being restored is nobody's, and is swept.
"""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Connection

from wardian.guest.guest import Guest
from wardian.isolation.port import Machine
from wardian.model.errors import Conflict
from wardian.model.isolation import Wanted
from wardian.model.sandbox import Event, Snapshot, State
from wardian.sandboxes.files import LAYER, capture_files
from wardian.sandboxes.identity import identity_of
from wardian.sandboxes.machines import attached_to, destroy, source_of
from wardian.sandboxes.owner import Owner
from wardian.sandboxes.pool import Source
from wardian.snapshots.store import SnapshotMissing
from wardian.store import snapshots

VERB = "resume"


class AlreadyRunning(Conflict):
    """The sandbox runs; there is nothing to resume."""

    code = "already_running"


async def resume(owner: Owner, timeout_s: int, *, memory: bool = True, wanted: Wanted | None = None) -> None:
    """Resume a paused sandbox for ``timeout_s`` from now. On failure it stays paused; the error says why.

    Without ``memory`` it is booted anew from its files. It gets what it was created with in any case, and
    what is ``wanted`` now.
    """
    works, sandbox = owner.works, owner.sandbox
    owner.check_present()
    if sandbox.state in (State.RUNNING, State.FROZEN):
        raise AlreadyRunning(f"sandbox {sandbox.id} is already running")
    snapshot_id = sandbox.snapshot_id or ""
    found: list[Snapshot | None] = []

    def look_up(conn: Connection) -> None:
        found.append(snapshots.get(conn, snapshot_id))

    await owner.commit(Event.RESUME, intent=(VERB, {"snapshot": snapshot_id}), also=look_up)
    works.checkpoint("resume.intended")
    try:
        source = _source(owner, found[0], wanted or Wanted())
        machine, guest = await _machine(owner, source, reboot=source.load is not None and not memory)
    except Exception as error:
        await _stay_paused(owner, error)
        raise
    works.checkpoint("resume.attached")
    try:
        await owner.commit(
            Event.RESUMED,
            outcome="done",
            also=lambda conn: snapshots.remove(conn, snapshot_id),
            facts={"snapshot": snapshot_id},
            epoch=sandbox.epoch + 1,
            driver=source.driver.name,
            isolation=machine.level.value,
            end_at=works.now_us() + timeout_s * 1_000_000,
            snapshot_id=None,
            machine_id=machine.id,
            machine=machine.record,
        )
    except Exception as error:
        await destroy(machine, guest)
        await _stay_paused(owner, error)
        raise
    owner.adopt(machine, guest)
    works.checkpoint("resume.committed")
    await works.snapshots.remove(snapshot_id)


def _source(owner: Owner, snapshot: Snapshot | None, wanted: Wanted) -> Source:
    sandbox = owner.sandbox
    if snapshot is None:
        raise SnapshotMissing(f"the snapshot of sandbox {sandbox.id} is not on record")
    works = owner.works
    own = sandbox.spec.isolation.at_least(wanted.minimum)
    source = source_of(works, snapshot, own, rather=sandbox.driver)
    wanted.check(works.drivers.level(source.driver), f"sandbox {sandbox.id}")
    return source


async def _machine(owner: Owner, source: Source, *, reboot: bool) -> tuple[Machine, Guest]:
    if not reboot:
        return await _obtain(owner, source)
    async with owner.works.snapshots.scratch() as directory:
        await _read_files(owner, source, directory)
        owner.works.checkpoint("resume.files_read")

        async def files() -> Path:
            return directory / LAYER

        return await _obtain(owner, Source(source.driver, source.spec, files=files))


async def _obtain(owner: Owner, source: Source) -> tuple[Machine, Guest]:
    sandbox, bridge = owner.sandbox, owner.works.bridge
    epoch = sandbox.epoch + 1
    identity = identity_of(
        sandbox,
        fresh_boot=source.files is not None,
        env=bridge.environment(sandbox, epoch),
        files=bridge.files(sandbox, epoch),
    )
    attach = attached_to(owner, epoch, identity, source.files)
    return await owner.works.pool.obtain(source, attach)


async def _read_files(owner: Owner, source: Source, directory: Path) -> None:
    """Restore the machine once more, out of anybody's sight and reach, for its files."""
    works = owner.works

    async def attach(guest: Guest) -> None:
        await guest.attach(owner.sandbox.epoch, timeout_s=works.options.guest_timeout_s)

    machine, guest = await works.pool.obtain(source, attach)
    try:
        await capture_files(guest, source.spec.root, source.spec.resources, directory)
    finally:
        await destroy(machine, guest)


async def _stay_paused(owner: Owner, error: Exception) -> None:
    await owner.commit_failure(Event.RESUME_FAILED, str(error) or type(error).__name__)
