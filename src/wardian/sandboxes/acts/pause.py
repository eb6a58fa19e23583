"""Pause: memory and disk become a durable snapshot, then the machine goes.

The machine is captured frozen and kept until the snapshot is published and the row says ``paused``. So there
is no instant at which the sandbox exists nowhere: a failed capture, a full disk or a crash at any point
leaves either a frozen machine to wake, or a complete snapshot. A pause of the files alone does the same with
a layer in the place of memory and disk. Repairs: with the snapshot published, finish; else wake the machine.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from wardian.isolation.port import Machine, MachineImage
from wardian.model.errors import Conflict, WardianError
from wardian.model.sandbox import FILES_ID, Event, Sandbox, Snapshot, State, has_memory
from wardian.sandboxes.files import capture_files
from wardian.sandboxes.identity import new_id
from wardian.sandboxes.machines import begin_capture, capture, destroy, quiesce
from wardian.sandboxes.owner import Owner
from wardian.snapshots.manifest import Manifest
from wardian.store import snapshots

VERB = "pause"

_log = logging.getLogger(__name__)


class AlreadyPaused(Conflict):
    """The sandbox is paused; there is nothing to do."""

    code = "already_paused"


async def pause(owner: Owner, *, memory: bool = True) -> None:
    """Pause a running or frozen sandbox. On failure it runs on, and the error says why.

    Without ``memory`` only its files are kept, and its resume is a boot.
    """
    works, sandbox = owner.works, owner.sandbox
    owner.check_present()
    if sandbox.state is State.PAUSED:
        raise AlreadyPaused(f"sandbox {sandbox.id} is already paused")
    snapshot_id = new_id("s" if memory else FILES_ID)
    await begin_capture(owner, Event.PAUSE, VERB, {"snapshot": snapshot_id})
    works.checkpoint("pause.intended")
    try:
        manifest, digest = await _capture(owner, snapshot_id)
    except Exception as error:
        await _wake(owner, error)
        raise
    works.checkpoint("pause.published")
    try:
        await finish(owner, manifest, digest)
    except Exception as error:
        await works.snapshots.remove(snapshot_id)
        await _wake(owner, error)
        raise
    works.checkpoint("pause.committed")
    await destroy(await owner.disown())
    owner.log.release()
    await asyncio.to_thread(owner.log.sync)


async def _capture(owner: Owner, snapshot_id: str) -> tuple[Manifest, str]:
    works = owner.works
    async with works.snapshots.scratch() as directory:
        if has_memory(snapshot_id):
            machine, _ = await quiesce(owner)
            works.checkpoint("pause.quiesced")
            await machine.freeze()  # what runs on after the capture would be undone by the resume
            image = await capture(machine, directory)
        else:
            machine, image = await files_of(owner, directory)
            await machine.freeze()
        works.checkpoint("pause.captured")
        return await publish(owner, snapshot_id, image)


async def files_of(owner: Owner, directory: Path) -> tuple[Machine, MachineImage]:
    """The files of the sandbox's machine, which goes on."""
    machine, guest, sandbox = owner.machine, owner.guest, owner.sandbox
    assert machine is not None
    assert guest is not None
    await machine.thaw()
    root = owner.works.root_image(sandbox.template_digest)
    return machine, await capture_files(guest, root, sandbox.resources, directory)


async def publish(owner: Owner, snapshot_id: str, image: MachineImage) -> tuple[Manifest, str]:
    """Make a capture of this sandbox a durable snapshot."""
    sandbox = owner.sandbox
    return await owner.works.snapshots.publish(
        snapshot_id,
        image,
        parent=sandbox.snapshot_id,
        created_at=owner.works.now_us(),
        facts={"sandbox": sandbox.id, "epoch": sandbox.epoch, "template": sandbox.template_id},
    )


async def finish(owner: Owner, manifest: Manifest, digest: str) -> None:
    """Record a published snapshot as the paused sandbox. Survives a power cut once it returns."""
    row = snapshot_row(owner.sandbox, manifest, digest, kind="pause", name=None)
    await owner.commit(
        Event.PAUSED,
        outcome="done",
        also=lambda conn: snapshots.add(conn, row),
        durable=True,
        stored_bytes=manifest.size_bytes,
        facts={"snapshot": manifest.id, "bytes": manifest.size_bytes},
        snapshot_id=manifest.id,
        machine_id=None,
        machine=None,
    )


async def _wake(owner: Owner, error: Exception) -> None:
    """Undo: the machine runs on as if nothing had been asked."""
    machine, guest = owner.machine, owner.guest
    if machine is not None and guest is not None:
        try:
            await machine.thaw()
            await guest.unquiesce()
        except WardianError as dead:
            _log.info("sandbox %s: %s", owner.sandbox.id, dead)  # whoever watches it ends the sandbox
        else:
            owner.release()
    await owner.commit_failure(Event.PAUSE_FAILED, str(error) or type(error).__name__)


def snapshot_row(
    sandbox: Sandbox, manifest: Manifest, digest: str, *, kind: str, name: str | None
) -> Snapshot:
    """The row of a published snapshot of ``sandbox``."""
    return Snapshot(
        id=manifest.id,
        tenant=sandbox.tenant,
        sandbox_id=sandbox.id,
        template_id=sandbox.template_id,
        kind=kind,
        names=() if name is None else (name,),
        parent_id=manifest.parent,
        digest=digest,
        size_bytes=manifest.size_bytes,
        created_at=manifest.created_at,
        root_digest=manifest.root_digest,
        resources=manifest.resources,
        build_id=sandbox.build_id,
        tree=sandbox.tree,
        surroundings=sandbox.surroundings,
        driver=sandbox.driver if has_memory(manifest.id) else "",
        isolation=sandbox.isolation,
    )
