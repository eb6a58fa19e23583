"""The agent against programs that take the machine over: only they end, and the host is told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import pytest
from tests.contract.harness import SMALL, House, Member, gvisor_tools, lines_of, make_programs, make_root

from wardian.guest.guest import Process
from wardian.isolation.gvisor import GvisorDriver
from wardian.isolation.port import RootImage

NOTICE_S = 60
BOMB = "bomb() { bomb | bomb & }; bomb; sleep 60"


@pytest.fixture(scope="module")
def root_image(tmp_path_factory: pytest.TempPathFactory) -> RootImage:
    make_programs()
    return make_root(tmp_path_factory.mktemp("root"))


@pytest.fixture
async def member(tmp_path: Path, root_image: RootImage) -> AsyncIterator[Member]:
    house = House(
        lambda: GvisorDriver(tmp_path, gvisor_tools(), cgroup_parent="wardian-guard"), root_image, tmp_path
    )
    yield await house.start()
    await house.close()


def notices(member: Member) -> asyncio.Queue[tuple[str, Mapping[str, object]]]:
    told: asyncio.Queue[tuple[str, Mapping[str, object]]] = asyncio.Queue()
    member.guest.on_notice = lambda kind, facts: told.put_nowait((kind, facts))
    return told


async def bystander(member: Member) -> Process:
    """A process of somebody else's, which must not be hurt."""
    process = await member.start(
        "/bin/sh", "-c", "echo here; while read line; do echo $line; done", user="user"
    )
    assert await anext(lines_of(process)) == "here"
    return process


async def assert_unhurt(process: Process) -> None:
    lines = lines_of(process)
    first = asyncio.ensure_future(anext(lines))
    await process.write(b"still here\n")
    assert await first == "still here"


@pytest.mark.parametrize("user", ["root", "user"])
async def test_a_fork_bomb_is_killed_and_nothing_else(member: Member, user: str) -> None:
    told, other = notices(member), await bystander(member)
    await member.start("/bin/sh", "-c", BOMB, user=user)
    async with asyncio.timeout(NOTICE_S):
        kind, facts = await told.get()
    assert kind == "fork_guard"
    assert facts["name"] == "sh"
    await assert_unhurt(other)
    assert await member.sh("echo alive") == "alive\n"
    stats = await member.guest.stats()
    assert stats["processes"] < SMALL.processes_max / 4


async def test_relief_ends_a_crowd_that_holds_the_memory(member: Member) -> None:
    """No single process of the crowd is worth killing."""
    told, other = notices(member), await bystander(member)
    crowd = await member.start(
        "/bin/sh", "-c", "i=0; while [ $i -lt 40 ]; do sleep 60 & i=$((i+1)); done; echo up; wait"
    )
    assert await anext(lines_of(crowd)) == "up"
    await member.guest.relieve_memory()
    async with asyncio.timeout(NOTICE_S):
        kind, facts = await told.get()
    assert (kind, facts["pid"]) == ("oom_kill", crowd.pid)
    assert facts["killed"] == 41
    await assert_unhurt(other)
