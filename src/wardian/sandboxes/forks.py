"""Forks: clones of a running sandbox, which goes on."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import replace

from wardian.isolation.port import MachineImage
from wardian.model.errors import Invalid, WardianError
from wardian.model.isolation import Wanted
from wardian.model.sandbox import Sandbox
from wardian.sandboxes.acts import capture, create
from wardian.sandboxes.origins import Origin, Origins
from wardian.sandboxes.owner import Owner
from wardian.sandboxes.roster import Roster
from wardian.sandboxes.workshop import Workshop

_log = logging.getLogger(__name__)


async def fork(
    works: Workshop,
    roster: Roster,
    origins: Origins,
    parent: Owner,
    wanted: Wanted,
    *,
    count: int,
    timeout_s: int | None,
    speculative: bool = False,
) -> Sequence[Sandbox | WardianError]:
    """``count`` clones of one capture, by the driver that made it. Each succeeds or fails by itself."""
    if not 1 <= count <= works.options.fork_max:
        raise Invalid(f"count must be between 1 and {works.options.fork_max}", code="bad_count")
    works.drivers.restoring(parent.sandbox.driver, wanted)  # or else nothing need be captured
    async with works.snapshots.scratch() as directory:
        image = await parent.turn(lambda: capture.capture_for_fork(parent, directory))
        return await asyncio.gather(
            *(
                _fork_one(roster, origins, parent.sandbox, image, wanted, timeout_s, speculative=speculative)
                for _ in range(count)
            )
        )


async def _fork_one(
    roster: Roster,
    origins: Origins,
    parent: Sandbox,
    image: MachineImage,
    wanted: Wanted,
    timeout_s: int | None,
    *,
    speculative: bool,
) -> Sandbox | WardianError:
    asked = replace(
        parent.spec,
        timeout_s=parent.spec.timeout_s if timeout_s is None else timeout_s,
        idempotency_key=None,
        isolation=parent.spec.isolation.at_least(wanted.minimum),
        speculative=parent.spec.speculative or speculative,
        run=None,
        granted_hosts=(),  # granted to the parent, and to nobody that comes after it
    )
    try:
        origin = origins.of_fork(parent, image, wanted)
        owner, _ = await roster.add(parent.tenant, origin, asked)
        await owner.turn(lambda: _make(owner, parent, origin))
    except WardianError as error:
        return error
    except OSError as error:
        _log.exception("a fork of sandbox %s failed", parent.id)
        return WardianError(f"the fork failed: {error}")
    return owner.sandbox


async def _make(owner: Owner, parent: Sandbox, origin: Origin) -> None:
    try:
        await owner.works.volumes.inherit(parent, owner.sandbox)
    except Exception as error:
        await create.give_up(owner, str(error))
        raise
    await create.create(owner, origin.source)
