"""One machine on the host, whatever runs it: its keeper, its processes, its end, and what it leaves.

A machine is one process (and what it makes) below one keeper, ``wardian-launch``, in one control group, with
one directory.
"""

from __future__ import annotations

import array
import asyncio
import os
import signal
import socket
from contextlib import suppress
from dataclasses import dataclass

from wardian.isolation.host.cgroup import Cgroup
from wardian.isolation.host.directory import KEEPER, STATUS, MachineDirectory
from wardian.isolation.host.held import Held
from wardian.isolation.host.process import HeldProcess
from wardian.isolation.port import MachineExit

GREETING_TIMEOUT_S = 5.0
STATUS_MAX = 1 << 17


@dataclass(frozen=True, slots=True)
class Greeting:
    """What a keeper hands to the machine's owner."""

    link: socket.socket
    keeper: HeldProcess
    init: HeldProcess

    def close(self) -> None:
        """Give everything back."""
        self.link.close()
        self.keeper.close()
        self.init.close()


async def ask_keeper(directory: MachineDirectory) -> Greeting:
    """Take the link and the process handles from the machine's keeper. Raises ``OSError`` if there is
    none."""
    loop = asyncio.get_running_loop()
    sock = directory.connect(KEEPER, socket.SOCK_SEQPACKET)
    try:
        async with asyncio.timeout(GREETING_TIMEOUT_S):
            await _readable(loop, sock)
        text, ancillary, _, _ = sock.recvmsg(64, socket.CMSG_SPACE(3 * 4))
    finally:
        sock.close()
    fds = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    words = text.split()
    if len(fds) != 3 or len(words) != 3 or words[0] != b"1":
        for fd in fds:
            os.close(fd)
        raise ConnectionError("the keeper refused us or ended")
    for fd in fds:
        os.set_inheritable(fd, False)
    link = socket.socket(fileno=fds[0])
    link.setblocking(False)
    return Greeting(
        link=link,
        keeper=HeldProcess(int(words[1]), fds[1]),
        init=HeldProcess(int(words[2]), fds[2]),
    )


async def _readable(loop: asyncio.AbstractEventLoop, sock: socket.socket) -> None:
    ready = asyncio.Event()
    loop.add_reader(sock, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(sock)


class Kept(Held):
    """A machine below a keeper."""

    def __init__(
        self, machine_id: str, directory: MachineDirectory, cgroup: Cgroup, greeting: Greeting
    ) -> None:
        super().__init__(machine_id, greeting.init)
        self.directory = directory
        self.cgroup = cgroup
        self.link = greeting.link
        self.keeper = greeting.keeper
        self._retiring = False

    async def retire(self) -> None:
        """End its processes and let a successor have the directory and the control group."""
        self._retiring = True
        await self.kill()

    async def _await_end(self) -> MachineExit:
        # The keeper writes the status after it has reaped the machine; if it was killed instead, that
        # follows.
        await self.keeper.ended()
        await self.init.ended()
        self.keeper.reap()
        end = self._read_end()
        await self._close()
        if not self._retiring:
            await destroy_remains(self.directory, self.cgroup)
        return end

    def _read_end(self) -> MachineExit:
        words = ""
        with suppress(OSError), (self.directory / STATUS).open("rb") as file:
            words = file.read(STATUS_MAX).decode(errors="replace")
        verdict, _, last_words = words.partition("\n")
        kind, _, number = verdict.partition(" ")
        last_words = last_words.strip()
        if self._asked_to_die:
            return MachineExit("killed")
        with suppress(OSError):
            if self.cgroup.oom_kills():
                return MachineExit("out_of_memory", "the machine hit its hard memory bound")
        if kind == "exit" and not self._broke(number, last_words):
            return MachineExit("exited", f"the guest's first process exited with status {number}")
        if kind == "signal" and number == str(int(signal.SIGKILL)):
            return MachineExit("killed", "killed from outside")
        if kind in ("exit", "signal", "error"):
            return MachineExit("crashed", f"{verdict}: {last_words[:4000]}")
        return MachineExit("lost", "its keeper was killed")

    def _broke(self, status: str, last_words: str) -> bool:
        """Whether an exit with this status, after these words on standard error, was an accident."""
        return status != "0"

    async def _close(self) -> None:
        self.keeper.close()
        self.init.close()


async def destroy_remains(directory: MachineDirectory, cgroup: Cgroup) -> None:
    """Kill whatever is left in the machine's control group and remove group and directory. Idempotent."""
    held = []
    for pid in cgroup.pids():
        with suppress(OSError):
            held.append(HeldProcess(pid, os.pidfd_open(pid)))
    # A pid read above may have been reused before it was opened; one still listed after that is the same
    # process.
    members = set(cgroup.pids())
    for process in held:
        if process.pid in members:
            process.send(signal.SIGKILL)
    for process in held:
        if process.pid in members:
            await process.ended()
            process.reap()
        process.close()
    await cgroup.remove()
    directory.remove()


__all__ = ["Greeting", "Kept", "ask_keeper", "destroy_remains"]
