"""A clone is somebody else: what it draws by lot, what it calls itself, what time it has."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path

from tests.contract.harness import PROCESS, House, Member

CLOCK_SLACK_S = 2.0


async def clock_of(member: Member) -> float:
    """How far the guest's clock is from ours, in seconds, at most."""
    before = time.time()
    told = float(await member.sh("/bin/inside time"))
    after = time.time()
    return max(before - told, told - after, 0.0)


async def test_clones_draw_other_numbers_and_have_other_names(house: House, tmp_path: Path) -> None:
    member = await house.start()
    await member.sh("head -c 16 /dev/urandom > /dev/null")
    image = await member.capture(tmp_path / "image", keep_running=False)
    drawn, names = set(), set()
    for clone in await asyncio.gather(*(house.restore(image) for _ in range(3))):
        drawn.add(await clone.sh("/bin/inside draw"))
        names.add(await clone.sh("uname -n; cat /etc/machine-id"))
    assert len(drawn) == 3
    assert len(names) == 3


async def test_a_machine_that_stood_still_has_the_right_time_again(house: House, tmp_path: Path) -> None:
    member = await house.start()
    assert await clock_of(member) < CLOCK_SLACK_S
    await member.machine.freeze()
    await asyncio.sleep(CLOCK_SLACK_S + 1)  # the time is what is measured
    await member.machine.thaw()
    assert await clock_of(member) < CLOCK_SLACK_S
    image = await member.capture(tmp_path / "image", keep_running=False)
    await asyncio.sleep(CLOCK_SLACK_S + 1)
    assert await clock_of(await house.restore(image)) < CLOCK_SLACK_S


async def test_a_machine_killed_from_outside_says_so_and_leaves_nothing(house: House) -> None:
    member = await house.start()
    os.kill(member.machine.record[PROCESS[house.driver.name]]["pid"], signal.SIGKILL)
    end = await member.machine.wait()
    assert end.reason in ("killed", "exited")
