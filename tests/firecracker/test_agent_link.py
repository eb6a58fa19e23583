"""The agent's side of a Firecracker machine's link: it listens, and again when a capture has cut its stream.

The real agent and our real end of the link; a unix socket stands for the vsock, which only a guest has.
"""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tests.guest.peer import start_agent

from wardian.guest.guest import Guest, Output, Process, ProcessConfig
from wardian.isolation.firecracker.vsock import Link

ECHO = 'while read word; do echo "heard $word"; done'


@asynccontextmanager
async def listening(directory: Path) -> AsyncIterator[Path]:
    """An agent that listens there."""
    place = directory / "vsock"
    unused, other = socket.socketpair()
    with unused, other, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as door:
        door.bind(str(place))
        door.listen(1)
        words = ("--listen", str(door.fileno()))
        process, _ = start_agent(directory, unused, *words, pass_fds=(door.fileno(),))
    try:
        yield place
    finally:
        process.kill()
        process.wait()


def dialled(place: Path) -> socket.socket:
    stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    stream.setblocking(False)
    stream.connect(str(place))
    return stream


async def told(process: Process, word: str) -> None:
    """The process answers what it is sent."""
    await process.write(f"{word}\n".encode())
    text = b""
    async for item in process.subscribe():
        assert isinstance(item, Output)
        text += item.data
        if text.endswith(b"\n"):
            break
    assert text == f"heard {word}\n".encode()


async def test_the_agent_listens_again_when_its_stream_ends(tmp_path: Path) -> None:
    async with listening(tmp_path) as place:
        link = Link()
        link.carry(dialled(place))
        guest = Guest(link.host_end)
        await guest.attach(1)
        process = await guest.exec(ProcessConfig("/bin/sh", ("-c", ECHO), {}, None), stdin=True)
        await told(process, "first")
        for word in ("again", "and again"):  # a capture of a machine that goes on
            await guest.quiesce()
            await link.hold()
            link.carry(dialled(place))
            await guest.unquiesce()
            await told(process, word)
        await guest.quiesce()
        await link.close()  # and a clone, whose host is another
        await guest.close()
        heir_link = Link()
        heir_link.carry(dialled(place))
        heir = Guest(heir_link.host_end)
        await heir.attach(2)
        assert list(heir.processes) == [process.pid]
        await told(heir.processes[process.pid], "a clone")
        await heir_link.close()
        await heir.close()
