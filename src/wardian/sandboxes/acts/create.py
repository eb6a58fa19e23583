"""Create: a row and an intent, then a machine that becomes the sandbox's.

A crash before the result leaves a row in ``creating`` and perhaps a machine nobody has heard of. Nothing was
acknowledged, so the repair is to end the row; the machine is swept.
"""

from __future__ import annotations

from wardian.model.sandbox import EndReason, Event
from wardian.sandboxes.identity import identity_of
from wardian.sandboxes.machines import attached_to, destroy
from wardian.sandboxes.owner import Owner
from wardian.sandboxes.pool import Reservation, Source

VERB = "create"


async def create(owner: Owner, source: Source, reservation: Reservation | None = None) -> None:
    """Give a sandbox in ``creating``, whose row and intent are written, its machine."""
    works = owner.works
    sandbox, bridge = owner.sandbox, works.bridge
    identity = identity_of(
        sandbox,
        fresh_boot=True,
        env=bridge.environment(sandbox, sandbox.epoch),
        files=bridge.files(sandbox, sandbox.epoch),
    )
    attach = attached_to(owner, sandbox.epoch, identity, source.files)
    works.checkpoint("create.intended")
    try:
        machine, guest = await works.pool.obtain(source, attach, reservation)
    except Exception as error:
        await give_up(owner, str(error))
        raise
    works.checkpoint("create.attached")
    try:
        await owner.commit(
            Event.CREATED,
            outcome="done",
            isolation=machine.level.value,
            machine_id=machine.id,
            machine=machine.record,
        )
    except Exception as error:
        await destroy(machine, guest)
        await give_up(owner, str(error))
        raise
    owner.adopt(machine, guest)
    works.checkpoint("create.committed")


async def give_up(owner: Owner, why: str, *, at: int | None = None) -> None:
    """End a sandbox that never was. ``at`` is when, if not now."""
    await owner.commit(
        Event.KILL,
        Event.GONE,
        outcome=f"failed: {why}",
        at=at,
        facts={"reason": EndReason.CREATE_FAILED.value, "detail": why},
        end_reason=EndReason.CREATE_FAILED,
        access_token=None,
        traffic_token=None,
    )
    owner.log.release()
