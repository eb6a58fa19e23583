"""Small things done to a sandbox's machine and guest by more than one act."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from wardian.guest.guest import Guest, Identity
from wardian.images.layers import apply_layer
from wardian.isolation.port import Machine, MachineImage, MachineSpec
from wardian.model.errors import GuestFault, WardianError
from wardian.model.isolation import Wanted
from wardian.model.sandbox import Event, Snapshot
from wardian.sandboxes.files import LAYER
from wardian.sandboxes.owner import Owner
from wardian.sandboxes.pool import Attach, Source
from wardian.sandboxes.workshop import Workshop
from wardian.snapshots.store import disk_error, disk_full, is_full

SETTLE_S = 0.25
"""How old a program must be to be captured: ``docs/decisions/0012``. Of those captured within 50 ms of their
start one in ten was found dead after a restore; of those captured after 0.3 s, none."""


def attached_to(
    owner: Owner, epoch: int, identity: Identity | None, files: Callable[[], Awaitable[Path]] | None = None
) -> Attach:
    """How a guest is made ``owner``'s: bound to the sandbox, attached with ``epoch`` and ``identity``.

    With ``files``, that layer is laid over its root image first: the identity has the last word.
    """
    patience = owner.works.options.guest_timeout_s

    async def attach(guest: Guest) -> None:
        if files is not None:
            layer = await files()
            await guest.attach(epoch, timeout_s=patience)
            await apply_layer(guest, layer)
        owner.bind(guest)
        await guest.attach(epoch, identity, timeout_s=patience)
        sandbox = owner.sandbox
        await owner.works.volumes.mount(guest, sandbox)
        if identity is not None:
            await owner.works.bridge.equip(guest, sandbox)

    return attach


def source_of(
    works: Workshop, snapshot: Snapshot, wanted: Wanted, *, rather: str = "", build_id: str | None = None
) -> Source:
    """How a machine is made from a snapshot: verified, and refused where this host cannot restore it.

    Memory is restored by the driver that captured it, or not at all; files are booted by any that makes what
    is ``wanted``, ``rather`` by the one of that name. Raises what :class:`Drivers` does.
    """
    spec = MachineSpec(works.root_image(snapshot.root_digest), snapshot.resources)
    if snapshot.has_memory:
        driver = works.drivers.restoring(snapshot.driver, wanted)
    else:
        driver = works.drivers.choose(wanted, rather=rather)

    async def load() -> MachineImage:
        manifest, image = await works.snapshots.load(snapshot.id, digest=snapshot.digest)
        manifest.check(works.drivers.host(driver.name))
        return image

    async def files() -> Path:
        return (await load()).directory / LAYER

    if snapshot.has_memory:
        return Source(driver, spec, load, build_id)
    return Source(driver, spec, files=files)


async def destroy(machine: Machine | None, guest: Guest | None = None) -> None:
    """End a machine that is (no longer) anybody's. Goes through even if the caller is cancelled."""

    async def end() -> None:
        if guest is not None:
            await guest.close()
        if machine is not None:
            await machine.kill()

    await asyncio.shield(asyncio.ensure_future(end()))


async def begin_capture(owner: Owner, event: Event, verb: str, data: Mapping[str, Any]) -> None:
    """Write the intent of a capture. From here on uses of the guest queue up behind it."""
    owner.hold()
    try:
        await owner.commit(event, intent=(verb, data))
    except BaseException:
        owner.release()
        raise


async def capture(machine: Machine, directory: Path) -> MachineImage:
    """Capture a machine that goes on. A failure for want of disk space says so, whatever the driver saw."""
    try:
        return await machine.capture(directory, keep_running=True)
    except WardianError as error:
        if is_full(directory):
            raise disk_full() from error
        raise
    except OSError as error:
        raise disk_error(error) from error


async def quiesce(owner: Owner) -> tuple[Machine, Guest]:
    """Bring the sandbox's guest to rest for a capture: awake first, settled, then silent."""
    machine, guest = owner.machine, owner.guest
    assert machine is not None
    assert guest is not None
    await machine.thaw()
    await _settle(guest)
    try:
        async with asyncio.timeout(owner.works.options.guest_timeout_s):
            await guest.quiesce()
    except TimeoutError:
        raise GuestFault(f"the guest of sandbox {owner.sandbox.id} did not come to rest in time") from None
    return machine, guest


async def _settle(guest: Guest) -> None:
    """Let programs that were just started finish loading (``docs/decisions/0012``)."""
    living = (process.started_at for process in guest.processes.values() if process.exit is None)
    await asyncio.sleep(max(living, default=0.0) + SETTLE_S - asyncio.get_running_loop().time())
