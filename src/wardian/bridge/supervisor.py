"""Keeps the bridge's process running: starts it, talks to it, and starts it again when it ends.

The process holds no state that is not on the disk or in the server's tables, so a new one goes on where the
last one was; only the connections under way are lost, and the ledger says which of them are in doubt.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import pwd
import socket
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wardian.bridge.channel import Answer, BridgeGone, Channel, Facts, Handle, error_of
from wardian.model.errors import Unavailable, WardianError

USER = "wardian-bridge"
UID = 0x6F00_0000
"""Whose the bridge is where the host has no user of that name; no human has it, and no sentry."""
START_S = 30.0
STOP_S = 5.0
BACKOFF_S = (0.05, 5.0)
"""The first and the longest wait before another start."""
STEADY_S = 30.0
"""Who ran this long is started again at once."""
COMMAND: Sequence[str] = (sys.executable, "-P", "-m", "wardian.bridge.process")
_PASSED_ON = ("PATH", "LANG", "LC_ALL", "SSL_CERT_FILE", "SSL_CERT_DIR", "WARDIAN_LOG")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Keys:
    """Where the vault's key comes from, when not from its file."""

    key: str | None = field(default=None, repr=False)
    command: str | None = field(default=None, repr=False)
    previous: str | None = field(default=None, repr=False)

    def handed(self) -> int:
        """A descriptor to read them from, once: they are in no environment and no command line."""
        reader, writer = os.pipe()
        with open(writer, "wb") as pipe:
            pipe.write(json.dumps([self.key, self.command, self.previous]).encode())
        return reader


@dataclass(frozen=True, slots=True)
class Hello:
    """What a bridge says first: its public key, and the certificate that sandboxes must trust."""

    key: bytes
    ca: str
    pid: int


class Supervisor:
    """``configure`` is called with each new channel before anything else goes over it."""

    def __init__(
        self,
        directory: Path,
        keys: Keys,
        handle: Handle,
        configure: Callable[[Channel], Awaitable[None]],
        ended: Callable[[], None],
        command: Sequence[str] = COMMAND,
    ) -> None:
        self._directory, self._keys, self._command = directory, keys, command
        self._handle_ask, self._configure, self._ended = handle, configure, ended
        self._may_make_key = False
        self._channel: Channel | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._hello: asyncio.Future[Hello] | None = None

    async def start(self, *, may_make_key: bool) -> Hello:
        """Start the first one. Raises :class:`Unavailable` when it does not come up."""
        self._may_make_key = may_make_key
        user = bridge_user()
        self._directory.mkdir(mode=0o700, exist_ok=True)
        if user is not None:
            os.chown(self._directory, user, user)
        hello = await self._start_one()
        self._keeper = asyncio.create_task(self._keep(), name="bridge keeper")
        return hello

    @property
    def channel(self) -> Channel:
        """To the bridge that runs. Raises :class:`BridgeGone` while there is none."""
        if self._channel is None or self._channel.closed.is_set():
            raise BridgeGone("the bridge is not there", hint="it is being started again; try again")
        return self._channel

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    async def close(self) -> None:
        """End it; what it was doing is in doubt, as after a crash."""
        if self._keeper is not None:
            self._keeper.cancel()
            with suppress(asyncio.CancelledError):
                await self._keeper
        if self._channel is not None:
            self._channel.close()
        await self._end_process()

    async def _start_one(self) -> Hello:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        user = bridge_user()
        environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
        if user is not None:
            environment["WARDIAN_BRIDGE_UID"] = str(user)
        if self._may_make_key:
            environment["WARDIAN_VAULT_KEY_NEW"] = "1"
        keys = self._keys.handed()
        try:
            self._process = await asyncio.create_subprocess_exec(
                *self._command,
                str(theirs.fileno()),
                str(keys),
                cwd=self._directory,
                env=environment,
                pass_fds=[theirs.fileno(), keys],
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                start_new_session=True,
            )
        except BaseException as error:
            ours.close()
            if not isinstance(error, OSError):
                raise
            raise Unavailable(f"the bridge cannot be started: {error}", code="bridge_unavailable") from None
        finally:
            theirs.close()
            os.close(keys)
        self._hello = asyncio.get_running_loop().create_future()
        channel = Channel(ours, self._take)
        gone = asyncio.create_task(channel.closed.wait())
        try:
            waited: set[asyncio.Future[Any]] = {self._hello, gone}
            await asyncio.wait(waited, timeout=START_S, return_when=asyncio.FIRST_COMPLETED)
            if not self._hello.done():
                raise Unavailable(
                    "the bridge did not start; its reason is in the server's log",
                    code="bridge_unavailable",
                    hint="most often the vault's key is missing, or not the one that sealed",
                )
            self._hello.result()  # or what it failed with
            await self._configure(channel)
        except BaseException:
            channel.close()
            await self._end_process()
            raise
        finally:
            gone.cancel()
        self._channel = channel
        return self._hello.result()

    async def _take(self, what: str, facts: Facts, sock: socket.socket | None) -> Answer:
        hello = self._hello
        if what not in ("hello", "failed") or hello is None:
            return await self._handle_ask(what, facts, sock)
        if not hello.done() and what == "failed":
            hello.set_exception(error_of(facts))
        elif not hello.done():
            hello.set_result(Hello(bytes.fromhex(facts["key"]), facts["ca"], facts["pid"]))
        return {}, None

    async def _keep(self) -> None:
        """Start it again whenever it ends, a little later each time."""
        loop = asyncio.get_running_loop()
        wait, began = BACKOFF_S[0], loop.time()
        self._may_make_key = False
        while True:
            if self._channel is not None:
                await self._channel.closed.wait()
                self._ended()
                await self._end_process()
                wait = BACKOFF_S[0] if loop.time() - began > STEADY_S else min(2 * wait, BACKOFF_S[1])
                _log.warning("the bridge ended; it is started again")
            await asyncio.sleep(wait)
            began = loop.time()
            try:
                await self._start_one()
            except WardianError as error:
                _log.error("%s", error)
                self._channel, wait = None, min(2 * wait, BACKOFF_S[1])

    async def _end_process(self) -> None:
        """It ends by itself once its channel is gone; else it is made to."""
        process = self._process
        if process is None:
            return
        try:
            async with asyncio.timeout(STOP_S):
                await process.wait()
        except TimeoutError:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()
        self._process = None


def bridge_user() -> int | None:
    """Whom the bridge runs as; None: as we do, who are nobody special ourselves."""
    if os.geteuid() != 0:
        return None
    try:
        return pwd.getpwnam(USER).pw_uid
    except KeyError:
        return UID
