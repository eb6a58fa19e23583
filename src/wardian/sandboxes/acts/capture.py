"""Capture a sandbox that goes on: for forks, and for snapshots kept on purpose.

Nothing is acknowledged before the capture is complete, and the machine never stops being there; so the
repair of a crash is to wake the machine, and to drop whatever was half-written.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from sqlalchemy import Connection

from wardian.isolation.port import MachineImage
from wardian.model.errors import Conflict
from wardian.model.sandbox import FILES_ID, Event, Snapshot, State
from wardian.sandboxes.acts.pause import files_of, publish, snapshot_row
from wardian.sandboxes.identity import new_id
from wardian.sandboxes.machines import begin_capture, capture, quiesce
from wardian.sandboxes.owner import Owner
from wardian.store import snapshots

FORK, SNAPSHOT = "fork", "snapshot"


async def capture_for_fork(owner: Owner, directory: Path) -> MachineImage:
    """Capture into ``directory``; the image is good for as long as the directory is."""
    _check_running(owner)
    works = owner.works
    await begin_capture(owner, Event.SNAPSHOT, FORK, {})
    works.checkpoint("fork.intended")
    try:
        image = await _capture(owner, directory)
    except Exception as error:
        await owner.commit_failure(Event.SNAPSHOT_DONE, str(error) or type(error).__name__)
        raise
    works.checkpoint("fork.captured")
    await owner.commit(Event.SNAPSHOT_DONE, outcome="done")
    owner.consider_idle()
    return image


async def take_snapshot(
    owner: Owner,
    name: str | None,
    *,
    memory: bool = True,
    kind: str = "named",
    also: Callable[[Connection, Snapshot], object] = lambda conn, row: None,
) -> Snapshot:
    """A durable snapshot of the running sandbox, or of its files alone, kept until it is deleted.

    ``also`` is the caller's part of the transaction that makes it be there; if that raises, it is not.
    Raises :class:`SecretFound` when a secret is in it: it is dropped then, and the sandbox goes on.
    """
    _check_running(owner)
    works = owner.works
    snapshot_id = new_id("s" if memory else FILES_ID)
    await begin_capture(owner, Event.SNAPSHOT, SNAPSHOT, {"snapshot": snapshot_id})
    works.checkpoint("snapshot.intended")
    try:
        async with works.snapshots.scratch() as directory:
            image = await (_capture if memory else _capture_files)(owner, directory)
            seen = await works.inspector.inspect(owner.sandbox.tenant, snapshot_id, image)
            manifest, digest = await publish(owner, snapshot_id, image)
            await seen.attest(digest)
    except Exception as error:
        await owner.commit_failure(Event.SNAPSHOT_DONE, str(error) or type(error).__name__)
        raise
    works.checkpoint("snapshot.published")
    row = snapshot_row(owner.sandbox, manifest, digest, kind=kind, name=name)

    def write(conn: Connection) -> None:
        snapshots.add(conn, row)
        also(conn, row)

    await owner.commit(
        Event.SNAPSHOT_DONE,
        outcome="done",
        also=write,
        durable=True,
        facts={"snapshot": row.id, "name": name, "bytes": row.size_bytes},
    )
    owner.consider_idle()
    return row


async def _capture(owner: Owner, directory: Path) -> MachineImage:
    """One instant of the machine. The guest goes on at once, before anything is made durable."""
    try:
        machine, guest = await quiesce(owner)
        try:
            return await capture(machine, directory)
        finally:
            await guest.unquiesce()
    finally:
        owner.release()


async def _capture_files(owner: Owner, directory: Path) -> MachineImage:
    try:
        _, image = await files_of(owner, directory)
        return image
    finally:
        owner.release()


def _check_running(owner: Owner) -> None:
    owner.check_present()
    sandbox = owner.sandbox
    if sandbox.state is State.PAUSED:
        raise Conflict(
            f"sandbox {sandbox.id} is paused", code="sandbox_paused", hint="resume it first, then try again"
        )
