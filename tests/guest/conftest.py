"""A native agent, built with the address and undefined-behaviour sanitizers, on a socket pair."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from tests.guest.wire import Wire
from tests.native import make

GUEST = Path(__file__).parents[2] / "guest"
PASSWD = """root:x:0:0:root:{home}/root:/bin/bash
user:x:1000:1000::{home}/home/user:/bin/bash
broken line
toolong:x:99999999999:1::/:/bin/sh
"""
GROUP = "root:x:0:\nuser:x:1000:\nextra:x:2000:somebody,user\nother:x:2001:users\n"


@pytest.fixture(scope="session")
def agent_binary() -> Path:
    make(GUEST, "asan")
    return GUEST / "build" / "wardian-guest-asan"


@dataclass
class Agent:
    """One running agent. ``home`` stands for / in what would change this machine."""

    wire: Wire
    home: Path
    process: subprocess.Popen[bytes]
    log: Path
    listeners: list[socket.socket] = field(default_factory=list)

    def stop(self) -> None:
        """Close the link, which must end it, without a word from a sanitizer."""
        self.wire.link.close()
        status = self.process.wait(20)
        for listener in self.listeners:
            listener.close()
        said = self.log.read_text()
        assert "Sanitizer" not in said, said
        assert "runtime error" not in said, said
        assert status == 0, (status, said)


@pytest.fixture
def machines() -> Iterator[Path]:
    """A directory that other users may enter, unlike pytest's: `user` must reach its home."""
    with TemporaryDirectory(prefix="wardian-guest-") as directory:
        os.chmod(directory, 0o755)
        yield Path(directory)


@pytest.fixture
def start_agent(agent_binary: Path, machines: Path) -> Iterator[Callable[..., Agent]]:
    agents: list[Agent] = []

    def start(*arguments: str, pass_fds: tuple[int, ...] = ()) -> Agent:
        home = machines / f"machine{len(agents)}"
        for name in ("etc", "root", "home/user"):
            (home / name).mkdir(parents=True)
        os.chown(home / "home/user", 1000, 1000)
        (home / "etc/passwd").write_text(PASSWD.format(home=home))
        (home / "etc/group").write_text(GROUP)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        log = home / "agent.log"
        with log.open("wb") as stderr:
            process = subprocess.Popen(
                [agent_binary, "--native", home, "--link", str(theirs.fileno()), *arguments],
                pass_fds=(theirs.fileno(), *pass_fds),
                stdin=subprocess.DEVNULL,
                stdout=stderr,
                stderr=stderr,
                env={"ASAN_OPTIONS": "detect_leaks=1:abort_on_error=0"},
            )
        theirs.close()
        agents.append(Agent(Wire(ours), home, process, log))
        return agents[-1]

    yield start
    for agent in agents:
        agent.stop()


@pytest.fixture
def agent(start_agent: Callable[..., Agent]) -> Agent:
    started = start_agent()
    started.wire.attach()
    return started


@pytest.fixture
def wire(agent: Agent) -> Wire:
    return agent.wire
