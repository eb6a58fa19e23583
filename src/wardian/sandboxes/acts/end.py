"""End: whatever a sandbox has, machine or snapshot, goes.

The intent names the reason, so the repair of a crash is simply to go on: what is gone already is not missed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from wardian.model.sandbox import EndReason, Event, State
from wardian.sandboxes.machines import destroy
from wardian.sandboxes.owner import Owner, not_found
from wardian.store import snapshots

VERB = "kill"
LOST = (EndReason.MACHINE_LOST, EndReason.OUT_OF_MEMORY)


async def end(owner: Owner, reason: EndReason, facts: Mapping[str, Any] | None = None) -> None:
    """End a sandbox in any state but ``ended``: asked for, its time up, or its machine lost."""
    works, sandbox = owner.works, owner.sandbox
    if sandbox.state is State.ENDED:
        raise not_found(sandbox.id)
    memory = sandbox.snapshot_id if sandbox.state is State.PAUSED else None
    await owner.commit(
        Event.MACHINE_LOST if reason in LOST else Event.KILL,
        intent=(VERB, {"reason": reason.value, "snapshot": memory}),
        facts={"reason": reason.value, **(facts or {})},
    )
    works.checkpoint("kill.intended")
    await destroy(await owner.disown())
    works.checkpoint("kill.killed")
    await finish(owner, reason, memory)


async def finish(owner: Owner, reason: EndReason, memory: str | None, *, at: int | None = None) -> None:
    """Record the end of a sandbox whose machine is gone; drop ``memory``, its snapshot if it was paused."""

    await owner.commit(
        Event.GONE,
        outcome="done",
        also=None if memory is None else lambda conn: snapshots.remove(conn, memory),
        at=at,
        facts={"reason": reason.value},
        end_reason=reason,
        access_token=None,
        traffic_token=None,
        machine_id=None,
        machine=None,
    )
    owner.works.checkpoint("kill.committed")
    if memory is not None:
        await owner.works.snapshots.remove(memory)
    owner.log.release()
    # Nobody waits for the log to reach the disk: what it says is also in the row.
    asyncio.get_running_loop().run_in_executor(None, owner.log.sync)
