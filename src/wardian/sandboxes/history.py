"""What happened to sandboxes, and what they cost."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from wardian.meter import intervals as meter
from wardian.model.usage import Usage
from wardian.sandboxes.owner import not_found
from wardian.sandboxes.roster import Roster
from wardian.sandboxes.workshop import Workshop
from wardian.store import sandboxes


async def events(
    works: Workshop, roster: Roster, tenant: str, sandbox_id: str, *, after_seq: int, limit: int
) -> Sequence[Mapping[str, Any]]:
    """The event log, also of a sandbox that has ended."""
    owner = roster.owners.get(sandbox_id)
    if owner is not None and owner.sandbox.tenant == tenant:
        return owner.log.read(after_seq=after_seq, limit=limit)
    found = await works.database.read(lambda conn: sandboxes.find(conn, tenant, sandbox_id))
    if found is None:
        raise not_found(sandbox_id)
    return await asyncio.to_thread(_read_ended, works, sandbox_id, after_seq, limit)


def _read_ended(works: Workshop, sandbox_id: str, after_seq: int, limit: int) -> Sequence[Mapping[str, Any]]:
    log = works.recorder.log(sandbox_id)
    try:
        return log.read(after_seq=after_seq, limit=limit)
    finally:
        log.release()


async def usage(works: Workshop, tenant: str, start_us: int, end_us: int) -> Usage:
    """What a tenant used in [start, end), up to this moment."""
    now = works.now_us()
    return await works.database.read(
        lambda conn: meter.usage(conn, tenant, start=start_us, end=end_us, now=now)
    )
