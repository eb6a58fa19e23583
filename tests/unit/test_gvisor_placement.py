"""A machine keeps to one processor while one is enough."""

import asyncio
import os
import subprocess
from collections.abc import Iterator
from typing import cast

import pytest

from wardian.isolation.gvisor import placement
from wardian.isolation.gvisor.placement import Placement
from wardian.isolation.host.cgroup import Cgroup

ALL = os.sched_getaffinity(0)

pytestmark = pytest.mark.skipif(len(ALL) < 2, reason="one processor leaves no choice")


class Group:
    """A control group of one process, whose use of the processor the test decides."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.used_ns = 1
        self.looked = asyncio.Event()

    def threads(self) -> list[int]:
        return [self.pid]

    def cpu_ns(self) -> int:
        self.looked.set()
        return self.used_ns


@pytest.fixture
def sleeper() -> Iterator[int]:
    process = subprocess.Popen(["sleep", "infinity"])
    yield process.pid
    process.kill()
    process.wait()


@pytest.fixture(autouse=True)
def short_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "WINDOW_S", 0.005)


async def looks(group: Group, times: int) -> None:
    for _ in range(times):
        group.looked.clear()
        await group.looked.wait()


async def test_it_begins_on_one_processor_and_stays_there_while_it_is_idle(sleeper: int) -> None:
    group = Group(sleeper)
    machine = Placement(cast(Cgroup, group))
    machine.begin()
    await looks(group, 3)
    machine.stop()
    assert machine.narrow
    assert len(os.sched_getaffinity(sleeper)) == 1


async def test_neighbours_take_turns_on_the_processors(sleeper: int) -> None:
    taken = set()
    for _ in ALL:
        machine = Placement(cast(Cgroup, Group(sleeper)))
        machine.begin()
        machine.stop()
        taken |= os.sched_getaffinity(sleeper)
    assert taken == ALL


async def test_a_busy_one_is_let_loose_and_confined_again_after_a_rest(sleeper: int) -> None:
    group = Group(sleeper)
    machine = Placement(cast(Cgroup, group))
    machine.begin()
    await looks(group, 1)
    group.used_ns += 1_000_000_000
    await looks(group, 1)
    assert not machine.narrow
    assert os.sched_getaffinity(sleeper) == ALL
    machine.begin()  # a freeze and a thaw lie between
    machine.stop()
    assert machine.narrow
    assert len(os.sched_getaffinity(sleeper)) == 1


async def test_without_the_right_to_choose_the_kernel_chooses(
    sleeper: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(thread: int, processors: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "sched_setaffinity", refuse)
    machine = Placement(cast(Cgroup, Group(sleeper)))
    machine.begin()
    assert not machine.narrow


async def test_a_machine_that_is_gone_is_watched_no_more(sleeper: int) -> None:
    class Gone(Group):
        def cpu_ns(self) -> int:
            raise FileNotFoundError

    machine = Placement(cast(Cgroup, Gone(sleeper)))
    machine.begin()
    assert machine._timer is None
