"""Fixtures of the fault tests: servers that can be killed, and a host that is looked over afterwards."""

from __future__ import annotations

import asyncio
import itertools
import json
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pytest
from tests.contract.harness import REPOSITORY, gvisor_tools, make_programs, make_root
from tests.faults.scenarios import CGROUP_PARENT, groups_of

from wardian.isolation.gvisor import GvisorDriver
from wardian.isolation.port import Capabilities, RootImage


@pytest.fixture(scope="session")
def root_image(tmp_path_factory: pytest.TempPathFactory) -> RootImage:
    make_programs()
    return make_root(tmp_path_factory.mktemp("root"))


@pytest.fixture(scope="session")
def zygote() -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.faults.zygote"],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    yield process
    assert process.stdin is not None
    process.stdin.close()
    process.wait(timeout=10)
    assert process.stdout is not None
    process.stdout.close()


@pytest.fixture(scope="session")
def probed(root_image: RootImage, tmp_path_factory: pytest.TempPathFactory) -> Capabilities:
    async def probe() -> Capabilities:
        driver = GvisorDriver(tmp_path_factory.mktemp("probe"), gvisor_tools(), cgroup_parent=CGROUP_PARENT)
        try:
            return await driver.probe()
        finally:
            await driver.close()

    found = asyncio.run(probe())
    assert found.usable, found.reason
    return found


@dataclass
class Host:
    """One data directory on this host, and the servers that come and go on it."""

    data: Path
    state: Path
    root: RootImage
    probed: Capabilities
    stdin: IO[str]
    stdout: IO[str]

    def serve(self, scenario: str, *, at: str | None = None) -> dict[str, Any]:
        """Run one server to its end (or its death)."""
        request = {
            "scenario": scenario,
            "at": at,
            "data": str(self.data),
            "state": str(self.state),
            "root": str(self.root.path),
            "root_digest": self.root.digest,
            "build": self.probed.build,
            "cpu_features": sorted(self.probed.cpu_features),
        }
        self.stdin.write(json.dumps(request) + "\n")
        self.stdin.flush()
        answer: dict[str, Any] = json.loads(self.stdout.readline())
        assert "crash" not in (answer["told"] or {}), answer["told"]["crash"]
        return answer

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        with sqlite3.connect(self.data / "wardian.db") as database:
            found = database.execute(query).fetchall()
        database.close()
        return found

    def assert_nothing_is_left(self) -> None:
        """After every sandbox was ended: no process, group, mount, loop device, file, intent or meter."""
        mark = str(self.state)
        mounts = [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if mark in line]
        assert mounts == []
        assert list((self.state / "machines").glob("*")) == []
        assert groups_of(self.state) == []
        assert [p.name for p in (self.data / "snapshots").iterdir()] == [".scratch"]
        assert list((self.data / "snapshots/.scratch").iterdir()) == []
        assert processes_of(mark) == []
        assert self.rows("SELECT * FROM intent WHERE closed_at IS NULL") == []
        assert self.rows("SELECT * FROM usage_interval WHERE closed_at IS NULL") == []
        assert self.rows("SELECT id, state FROM sandbox WHERE state != 'ended'") == []
        assert self.rows("SELECT * FROM snapshot") == []
        self.assert_intervals_cover()

    def assert_intervals_cover(self) -> None:
        """Every sandbox's intervals cover its life exactly: no gap, no overlap."""
        for sandbox_id, created_at, ended_at in self.rows("SELECT id, created_at, ended_at FROM sandbox"):
            intervals = self.rows(
                "SELECT opened_at, closed_at FROM usage_interval "
                f"WHERE sandbox_id = '{sandbox_id}' ORDER BY opened_at, id"
            )
            edges = [created_at, *itertools.chain(*intervals), ended_at]
            assert edges[::2] == edges[1::2], sandbox_id


def processes_of(mark: str) -> list[str]:
    """Command lines of processes that name ``mark``, or have it as their root or working directory."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            command = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if mark in command and "tests.faults" not in command and "pytest" not in command:
            found.append(command)
    return found


@pytest.fixture
def host(
    tmp_path: Path, root_image: RootImage, probed: Capabilities, zygote: subprocess.Popen[str]
) -> Iterator[Host]:
    assert zygote.stdin is not None
    assert zygote.stdout is not None
    state = tmp_path / "state"
    yield Host(tmp_path / "data", state, root_image, probed, zygote.stdin, zygote.stdout)

    async def sweep() -> None:
        driver = GvisorDriver(state, gvisor_tools(), cgroup_parent=CGROUP_PARENT)
        await driver.sweep(set())  # what a failed test left
        await driver.close()

    asyncio.run(sweep())
