"""What a server process does in a fault test: set something up, then do one thing, and perhaps die in it.

Each scenario returns JSON-able facts. ``at`` arms the death: the process kills itself with SIGKILL when it
reaches the checkpoint of that name, after the set-up.
"""

from __future__ import annotations

import hashlib
import os
import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.contract.harness import SMALL, gvisor_tools
from tests.lifecycle.house import TENANT, House

from wardian.guest.guest import Exit, ProcessConfig
from wardian.isolation.gvisor import GvisorDriver
from wardian.isolation.port import Capabilities, RootImage
from wardian.model.errors import WardianError
from wardian.model.sandbox import OnTimeout, Sandbox, SandboxSpec
from wardian.sandboxes.compressing import Compressor
from wardian.sandboxes.service import ListQuery
from wardian.sandboxes.workshop import Options

COUNTER = "i=0; while true; do i=$((i+1)); echo $i > /tmp/count; sleep 0.02; done"
CGROUP_PARENT = "wardian-faults"


@dataclass
class Death:
    """Kills this process at a checkpoint, once armed."""

    at: str | None
    armed: bool = field(default=False)

    def checkpoint(self, name: str) -> None:
        if self.armed and name == self.at:
            os.kill(os.getpid(), signal.SIGKILL)


class ProbedDriver(GvisorDriver):
    """Believes an earlier probe, so that a server of a test starts at once."""

    probed: Capabilities

    async def probe(self) -> Capabilities:
        return self.probed


@dataclass
class Place:
    """Where a server of a test keeps its things."""

    data: Path
    state: Path
    root: RootImage
    probed: Capabilities

    async def open(self, death: Death) -> House:
        driver = ProbedDriver(self.state, gvisor_tools(), cgroup_parent=CGROUP_PARENT)
        driver.probed = self.probed
        return await House.open(
            self.data,
            driver,
            self.root,
            resources=SMALL,
            options=Options(freeze_idle=False),
            checkpoint=death.checkpoint,
        )


def groups_of(state: Path) -> list[Path]:
    """The control groups of the machines of one driver's state directory, in every hierarchy."""
    mark = hashlib.sha256(os.fsencode(state.resolve())).hexdigest()[:12]  # as the driver names them
    root = Path("/sys/fs/cgroup")
    found = {*root.glob(f"*-{mark}/m*"), *root.glob(f"*/*-{mark}/m*")}
    return sorted(path for path in found if path.is_dir())


async def sh(house: House, sandbox_id: str, script: str) -> str:
    """What a shell script in a sandbox prints."""
    async with house.sandboxes.guest(sandbox_id) as guest:
        process = await guest.exec(ProcessConfig("/bin/sh", ("-c", script), {}, None), user="root")
        out = b""
        async for piece in process.subscribe():
            if isinstance(piece, Exit):
                break
            out += piece.data
    return out.decode().strip()


async def counting(house: House) -> Sandbox:
    """A sandbox with a process that counts in a file."""
    sandbox = await house.sandboxes.create(TENANT, SandboxSpec(timeout_s=600, on_timeout=OnTimeout.PAUSE))
    async with house.sandboxes.guest(sandbox.id) as guest:
        await guest.exec(ProcessConfig("/bin/sh", ("-c", COUNTER), {}, None), user="root")
    await sh(house, sandbox.id, "while ! test -s /tmp/count; do sleep 0.01; done")
    return sandbox


async def _create(house: House, death: Death) -> dict[str, Any]:
    death.armed = True
    return {"id": (await house.sandboxes.create(TENANT, SandboxSpec())).id}


async def _pause(house: House, death: Death) -> dict[str, Any]:
    sandbox = await counting(house)
    death.armed = True
    await house.sandboxes.pause(TENANT, sandbox.id)
    return {"id": sandbox.id}


async def _resume(house: House, death: Death) -> dict[str, Any]:
    sandbox = await counting(house)
    await house.sandboxes.pause(TENANT, sandbox.id)
    death.armed = True
    await house.sandboxes.resume(TENANT, sandbox.id, 600)
    return {"id": sandbox.id}


STILL = "/root/still"
"""There when the counter may be gone: only the files were kept."""


async def _files_kept(house: House, *, memory: bool) -> str:
    """A sandbox that is paused, to be booted from its files."""
    sandbox = await counting(house)
    await sh(house, sandbox.id, f"touch {STILL}")
    await house.sandboxes.pause(TENANT, sandbox.id, memory=memory)
    return sandbox.id


async def _pause_files(house: House, death: Death) -> dict[str, Any]:
    sandbox = await counting(house)
    await sh(house, sandbox.id, f"touch {STILL}")
    death.armed = True
    await house.sandboxes.pause(TENANT, sandbox.id, memory=False)
    return {"id": sandbox.id}


async def _boot(house: House, death: Death) -> dict[str, Any]:
    sandbox_id = await _files_kept(house, memory=False)
    death.armed = True
    await house.sandboxes.resume(TENANT, sandbox_id, 600)
    return {"id": sandbox_id}


async def _reboot(house: House, death: Death) -> dict[str, Any]:
    sandbox_id = await _files_kept(house, memory=True)
    death.armed = True
    await house.sandboxes.resume(TENANT, sandbox_id, 600, memory=False)
    return {"id": sandbox_id}


async def _compress(house: House, death: Death) -> dict[str, Any]:
    """What is paused is compressed; the next server finds whatever was there by then."""
    sandbox = await counting(house)
    await house.sandboxes.pause(TENANT, sandbox.id)
    death.armed = True
    return {"id": sandbox.id, "compressed": await Compressor(house.works, 0).round()}


async def _expand(house: House, death: Death) -> dict[str, Any]:
    sandbox = await counting(house)
    await house.sandboxes.pause(TENANT, sandbox.id)
    assert await Compressor(house.works, 0).round()
    death.armed = True
    await house.sandboxes.resume(TENANT, sandbox.id, 600)
    return {"id": sandbox.id}


async def _fork(house: House, death: Death) -> dict[str, Any]:
    sandbox = await counting(house)
    death.armed = True
    await house.sandboxes.fork(TENANT, sandbox.id, count=2, timeout_s=600)
    return {"id": sandbox.id}


async def _snapshot(house: House, death: Death) -> dict[str, Any]:
    sandbox = await counting(house)
    death.armed = True
    await house.sandboxes.snapshot(TENANT, sandbox.id, name="kept")
    return {"id": sandbox.id}


async def _kill(house: House, death: Death) -> dict[str, Any]:
    sandbox = await counting(house)
    death.armed = True
    await house.sandboxes.kill(TENANT, sandbox.id)
    return {"id": sandbox.id}


async def _kill_paused(house: House, death: Death) -> dict[str, Any]:
    sandbox = await counting(house)
    await house.sandboxes.pause(TENANT, sandbox.id)
    death.armed = True
    await house.sandboxes.kill(TENANT, sandbox.id)
    return {"id": sandbox.id}


async def _run_on(house: House, death: Death) -> dict[str, Any]:
    """A sandbox that counts while its server is killed."""
    sandbox = await counting(house)
    count = await sh(house, sandbox.id, "cat /tmp/count")
    (house.data / "acknowledged").write_text(f"{sandbox.id} {count}")
    os.kill(os.getpid(), signal.SIGKILL)
    return {}


async def _survey(house: House, death: Death) -> dict[str, Any]:
    """What a new server finds: every sandbox, and whether it still counts. Then ends them all."""
    found: dict[str, Any] = {}
    for sandbox in (await house.sandboxes.list(TENANT, ListQuery())).items:
        state = sandbox.public_state
        if state == "paused":
            await house.sandboxes.resume(TENANT, sandbox.id, 600)
        before = await sh(house, sandbox.id, "cat /tmp/count 2>/dev/null || echo none")
        still = await sh(house, sandbox.id, f"test -e {STILL} && echo still || echo moving")
        if before != "none" and still == "moving":
            moved = f"while test $(cat /tmp/count || echo {before}) = {before}; do sleep 0.01; done"
            await sh(house, sandbox.id, moved)
        found[sandbox.id] = {"state": state, "count": before, "parent": sandbox.parent_id}
        await house.sandboxes.kill(TENANT, sandbox.id)
    kept, _ = await house.sandboxes.list_snapshots(TENANT, sandbox_id=None, name=None, limit=10, cursor=None)
    for snapshot in kept:
        await house.sandboxes.delete_snapshot(TENANT, snapshot.id)
    return {"sandboxes": found, "snapshots": len(kept), "attached": list(house.outcome.attached)}


SCENARIOS: dict[str, Callable[[House, Death], Awaitable[dict[str, Any]]]] = {
    "create": _create,
    "pause": _pause,
    "pause_files": _pause_files,
    "boot": _boot,
    "reboot": _reboot,
    "resume": _resume,
    "compress": _compress,
    "expand": _expand,
    "fork": _fork,
    "snapshot": _snapshot,
    "kill": _kill,
    "kill_paused": _kill_paused,
    "run_on": _run_on,
    "survey": _survey,
}


async def play(name: str, place: Place, at: str | None) -> dict[str, Any]:
    """One server's life: open, play the scenario, close."""
    death = Death(at)
    house = await place.open(death)
    try:
        return await SCENARIOS[name](house, death)
    except WardianError as error:
        return {"error": error.code, "message": str(error)}
    finally:
        await house.close()
        await house.works.drivers.close()
