"""QEMU's control protocol (QMP): lines of JSON on a unix socket, descriptors beside them.

One conversation is one connection, which QEMU serves one after another. QEMU is less trusted than we are:
what it says is bounded, and nothing of it is believed that matters to others.
"""

from __future__ import annotations

import array
import asyncio
import json
import os
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from wardian.isolation.host.directory import CONTROL, MachineDirectory
from wardian.model.errors import Kind, WardianError

CALL_TIMEOUT_S = 30.0
LINE_MAX = 1 << 20
_CHUNK = 1 << 16


class QmpBroken(WardianError):
    """QEMU does not answer as it should."""

    kind, code = Kind.UNAVAILABLE, "qemu_broken"


class QmpRefused(WardianError):
    """QEMU refused a command."""

    kind, code = Kind.UNAVAILABLE, "qemu_refused"


class Qmp:
    """A conversation."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._rest = b""
        self._events: list[dict[str, Any]] = []

    async def call(
        self, command: str, *, fds: Sequence[int] = (), timeout_s: float = CALL_TIMEOUT_S, **arguments: object
    ) -> Any:
        """Have QEMU do something; underscores in names of arguments stand for hyphens."""
        named = {name.replace("_", "-"): value for name, value in arguments.items()}
        line = json.dumps({"execute": command, "arguments": named}).encode() + b"\n"
        try:
            async with asyncio.timeout(timeout_s):
                await self._send(line, fds)
                while True:
                    answer = await self._receive()
                    if "event" in answer:
                        self._events.append(answer)
                    elif "error" in answer:
                        raise QmpRefused(f"{command}: {answer['error'].get('desc', 'no reason given')}")
                    elif "return" in answer:
                        return answer["return"]
        except TimeoutError:
            raise QmpBroken(f"{command}: no answer within {timeout_s:g} s") from None

    async def event(self, name: str) -> dict[str, Any]:
        """Wait for an event; its data."""
        while True:
            for at, event in enumerate(self._events):
                if event["event"] == name:
                    del self._events[at]
                    return dict(event.get("data", {}))
            answer = await self._receive()
            if "event" in answer:
                self._events.append(answer)

    async def greet(self) -> None:
        """Begin: QEMU greets, and we agree to whatever it can do."""
        try:
            async with asyncio.timeout(CALL_TIMEOUT_S):
                await self._receive()
        except TimeoutError:
            raise QmpBroken(f"no greeting within {CALL_TIMEOUT_S:g} s") from None
        await self.call("qmp_capabilities")

    async def give(self, fd: int) -> str:
        """Hand a descriptor over; the name under which QEMU opens it."""
        told = await self.call("add-fd", fds=[fd])
        return f"/dev/fdset/{int(told['fdset-id'])}"

    async def _send(self, line: bytes, fds: Sequence[int]) -> None:
        loop = asyncio.get_running_loop()
        try:
            if fds:
                rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds).tobytes())]
                line = line[self._sock.sendmsg([line], rights) :]
            await loop.sock_sendall(self._sock, line)
        except OSError as error:
            raise QmpBroken(f"QEMU takes no commands: {error}") from error

    async def _receive(self) -> dict[str, Any]:
        loop = asyncio.get_running_loop()
        while b"\n" not in self._rest:
            try:
                chunk = await loop.sock_recv(self._sock, _CHUNK)
            except OSError as error:
                raise QmpBroken(f"QEMU gives no answers: {error}") from error
            if not chunk:
                raise QmpBroken("QEMU ended the conversation")
            self._rest += chunk
            if len(self._rest) > LINE_MAX:
                raise QmpBroken("QEMU says too much")
        line, self._rest = self._rest.split(b"\n", 1)
        try:
            answer = json.loads(line)
        except ValueError as error:
            raise QmpBroken("QEMU says what is no JSON") from error
        if not isinstance(answer, dict):
            raise QmpBroken("QEMU says what is no object")
        return answer


@asynccontextmanager
async def conversation(directory: MachineDirectory) -> AsyncIterator[Qmp]:
    """Talk to the QEMU of a machine. Raises :class:`QmpBroken` if it is not there."""
    try:
        sock = directory.connect(CONTROL, socket.SOCK_STREAM)
    except OSError as error:
        raise QmpBroken(f"QEMU is not there: {error}") from error
    try:
        qmp = Qmp(sock)
        await qmp.greet()
        yield qmp
    finally:
        sock.close()


def opened_for_writing(path: os.PathLike[str], mode: int) -> int:
    """A descriptor of a new file that QEMU may write: it insists on this access."""
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)


__all__ = ["Qmp", "QmpBroken", "QmpRefused", "conversation", "opened_for_writing"]
