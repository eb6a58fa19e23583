"""Sandboxes that run already, and grants that are new: what programs inside need for them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable

from wardian.model.errors import WardianError
from wardian.model.sandbox import LIVE
from wardian.sandboxes.owner import Owner

_log = logging.getLogger(__name__)


async def equip(owners: Iterable[Owner]) -> None:
    """Give each that runs its run token and whom to trust. What one refuses costs the others nothing; a
    resume does it again."""
    running = [each for each in owners if each.sandbox.state in LIVE]
    await asyncio.gather(*(_equip(each) for each in running))


async def _equip(owner: Owner) -> None:
    sandbox, bridge = owner.sandbox, owner.works.bridge
    try:
        async with owner.use() as guest:
            for path, (mode, content) in bridge.files(sandbox, sandbox.epoch).items():
                await guest.write(path, _once(content), user="root", mode=mode)
            await bridge.equip(guest, sandbox)
    except (WardianError, OSError) as error:
        _log.info("sandbox %s: %s", sandbox.id, error)


async def _once(content: bytes) -> AsyncIterator[bytes]:
    yield content
