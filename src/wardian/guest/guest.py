"""What the host can ask of one guest, in Python terms. The wire is ``guest/PROTOCOL.md``.

A guest is hostile. All it can do to us is to end itself: whatever breaks the protocol, and the loss of the
link, calls ``on_fault`` once and fails everything that waits with
:class:`~wardian.model.errors.GuestFault`. A guest's refusals (no such file, disk full) are
:class:`~wardian.guest.errors.Refusal`s: a WardianError of the fitting kind with the Linux ``errno``. Every
call may be cancelled and then leaves nothing behind.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import secrets
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence

from wardian.guest import carrying, files, tunnels
from wardian.guest.control import Notices, attach_fields, parse_hello
from wardian.guest.errors import Refuse, at_path, refused
from wardian.guest.frames import (
    ATTACH,
    FIN,
    HELLO,
    MORE,
    NOTICE,
    OP_CONNECT,
    OP_MKDIR,
    OP_MOVE,
    OP_REMOVE,
    OP_RESOLVE,
    OP_STAT,
    OP_STATS,
    OP_WATCH,
    PAYLOAD_MAX,
    QUIESCE,
    QUIESCED,
    RELIEVE,
    REPLY,
    UNQUIESCE,
    Fields,
    Violation,
    field,
    number,
)
from wardian.guest.labels import encode_label
from wardian.guest.link import Link
from wardian.guest.processes import Process, Processes, size_fields
from wardian.guest.streams import begin, call, parsed
from wardian.guest.tunnels import Incoming, Tunnel
from wardian.guest.values import Entry, Exit, Identity, Output, ProcessConfig, WatchEvent
from wardian.guest.watches import Watch, WatchStream
from wardian.model.errors import GuestFault, Invalid, Unavailable

_log = logging.getLogger(__name__)

CONNECTIONS_MAX = 1024
RESOLUTIONS_MAX = 64
_LISTINGS_MAX = 4  # at once: each may hold tens of megabytes
_HELLO_MAX = 80 * 1024 * 1024  # 4160 processes with labels of 16 KiB
_HELLO_BEGINS = b"\1"  # the version is its first field
_ANSWER_MAX = 60 * 1024
_STATS = {
    1: ("mem_total", 8),
    2: ("mem_available", 8),
    3: ("disk_total", 8),
    4: ("disk_used", 8),
    5: ("processes", 4),
    6: ("uptime_ns", 8),
    7: ("mem_cached", 8),
}


async def _refuse_connect(address: str, port: int, tunnel: Tunnel) -> None:
    raise OSError(errno.ENETUNREACH, os.strerror(errno.ENETUNREACH))


async def _refuse_resolve(query: bytes) -> bytes:
    raise OSError(errno.ENETUNREACH, os.strerror(errno.ENETUNREACH))


class Guest:
    """The host's end of one machine's link. Nothing happens before :meth:`attach`; the link belongs to it.

    ``processes`` maps pids to processes that are alive, or ended less than 30 s ago. The four callbacks are
    set by the owner before ``attach``; until then connections and look-ups are refused and notices dropped.
    """

    processes: Mapping[int, Process]

    on_connect: Callable[[str, int, Tunnel], Awaitable[None]]
    """Address, port and stream (an :class:`Incoming`) of a connection that a program inside wants to make.

    OSError refuses it (or, once accepted, resets it); returning ends it. Cancelled when the program gives up.
    """
    on_resolve: Callable[[bytes], Awaitable[bytes]]
    """A DNS query packet; the answer packet, at most 60 KiB. OSError becomes SERVFAIL inside."""
    on_notice: Callable[[str, Mapping[str, object]], None]
    """``oom_kill`` or ``fork_guard``, with pid, name, bytes, killed as the guest claims.

    Flooding is cut off.
    """
    on_fault: Callable[[Exception], None]
    """The link broke or the guest misbehaved: the machine is not to be trusted.

    Called once, not after ``close``.
    """

    def __init__(self, link: socket.socket) -> None:
        self._link = Link(
            link,
            on_control=self._on_control,
            on_open=self._on_open,
            on_broken=self._lost,
        )
        self._processes = Processes(self._link)
        self.processes = self._processes.by_pid
        self._hello: asyncio.Future[None] | None = None
        self._hello_parts: list[bytes] = []
        self._attach_token = 0
        self._quiesced: asyncio.Future[None] | None = None
        self._quiesce_owed = 0
        self._resolving = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._listings = asyncio.Semaphore(_LISTINGS_MAX)
        self._notices = Notices()
        self.on_connect, self.on_resolve = _refuse_connect, _refuse_resolve
        self.on_notice = lambda kind, facts: None
        self.on_fault = lambda error: None

    # -- life

    async def attach(self, epoch: int, identity: Identity | None = None, *, timeout_s: float = 10) -> None:
        """Become the guest's host; with ``identity``, give it that first. GuestFault if it does not comply.

        Whatever another host (or this one before) had under way is over, but the processes go on.
        """
        link = self._link
        link.start()
        if link.broken:
            raise link.failure()
        self._attach_token = (epoch & 0xFFFFFFFF) << 32 | secrets.randbits(32)
        body = attach_fields(self._attach_token, identity)
        if len(body) > PAYLOAD_MAX:
            raise Invalid("the identity files are larger than 60 KiB", code="request_too_large")
        link.detach(self._processes.keeps, Unavailable("the guest was attached anew", code="reattached"))
        self._quiesced, self._quiesce_owed = None, 0
        self._hello, self._hello_parts = asyncio.get_running_loop().create_future(), []
        link.attaching = True
        link.resume()
        link.send(ATTACH, 0, 0, body)
        try:
            async with asyncio.timeout(timeout_s):
                await self._hello
        except TimeoutError:
            link.fault(f"the guest agent did not answer within {timeout_s:g} s", code="guest_timeout")
            raise link.failure() from None

    def _lost(self, error: GuestFault) -> None:
        """The link broke. The streams have failed already."""
        self._fail_waiters()
        for task in self._tasks:
            task.cancel()
        self.on_fault(error)

    async def close(self) -> None:
        """Let go of the link, without a fault. Everything that waits fails with Unavailable. Idempotent."""
        self._link.shut()
        self._fail_waiters()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def quiesce(self) -> None:
        """Make the agent stop, so that the machine can be captured. Calls made until ``unquiesce`` wait."""
        link = self._link
        if link.broken:
            raise link.failure()
        if self._quiesced is None:
            self._quiesced = asyncio.get_running_loop().create_future()
            self._quiesce_owed += 1
            link.send(QUIESCE, 0, 0)
            link.hold()
        await asyncio.shield(self._quiesced)

    async def unquiesce(self) -> None:
        """Go on after a capture (or instead of one)."""
        self._quiesced = None
        self._link.send(UNQUIESCE, 0, 0)
        self._link.resume()

    async def relieve_memory(self) -> None:
        """Memory is nearly gone: the agent kills the biggest process now."""
        self._link.send(RELIEVE, 0, 0)

    # -- processes

    async def exec(
        self,
        config: ProcessConfig,
        *,
        user: str | None = None,
        env: Mapping[str, str] = {},
        pty: tuple[int, int] | None = None,  # cols, rows
        stdin: bool = False,
    ) -> Process:
        """Start a process. Its first output is kept for whoever subscribes first, within a second.

        Invalid (``cwd_not_found``, ``not_executable``, ``invalid_username``) when it cannot start.
        Cancelled, it ends the process that may come of it.
        """
        parts = [field(3, files.text(argument, "an argument")) for argument in (config.cmd, *config.args)]
        for key, value in {**env, **config.envs}.items():
            if not key or "=" in key:
                raise Invalid(f"{key!r} is no name of an environment variable", code="invalid_env")
            parts.append(field(4, files.text(f"{key}={value}", "an environment variable")))
        if user is not None:
            parts.append(field(1, files.text(user, "the user")))
        if config.cwd is not None:
            parts.append(field(5, files.text(config.cwd, "the working directory")))
        if pty is not None:
            parts.append(size_fields(pty))
        parts.append(number(8, int(stdin), 1))
        parts.append(field(10, encode_label(config)))
        return await self._processes.start(b"".join(parts), config, pty=pty is not None, stdin=stdin)

    # -- files

    async def stat(self, path: str, *, user: str | None = None) -> Entry:
        """One entry. NotFound."""
        return await self._entry(OP_STAT, files.place(path, user), at_path(path))

    async def list(self, path: str, *, depth: int = 1, user: str | None = None) -> Sequence[Entry]:
        """A lexical walk below a directory, parents first, itself not.

        LimitExceeded above 200,000 entries.
        """
        async with self._listings:
            return await files.listing(self._link, path, user, depth)

    async def mkdir(self, path: str, *, user: str | None = None) -> Entry:
        """Make a directory and its parents. Conflict (``already_exists``)."""
        return await self._entry(OP_MKDIR, files.place(path, user), at_path(path))

    async def move(self, source: str, destination: str, *, user: str | None = None) -> Entry:
        """Rename; the destination's parents are made. Returns the entry at the destination."""
        body = files.place(source, user) + field(3, files.text(destination, "the destination"))
        return await self._entry(OP_MOVE, body, at_path(source))

    async def remove(self, path: str, *, user: str | None = None) -> None:
        """Remove a file or a whole directory; what is not there is fine."""
        await call(self._link, OP_REMOVE, files.place(path, user), at_path(path))

    async def read(
        self, path: str, *, offset: int = 0, length: int | None = None, user: str | None = None
    ) -> tuple[Entry, AsyncIterator[bytes]]:
        """The entry and the contents, in pieces of at most 64 KiB.

        Drop or ``aclose`` the iterator to stop.
        """
        return await files.read(self._link, path, user, offset, length)

    async def write(
        self,
        path: str,
        chunks: AsyncIterator[bytes],
        *,
        user: str | None = None,
        mode: int = 0o644,
        metadata: Mapping[str, str] | None = None,
        append: bool = False,
    ) -> Entry:
        """Write a file, its parents made, its metadata replaced. LimitExceeded (``no_space``)."""
        return await files.write(
            self._link, path, chunks, user=user, mode=mode, metadata=metadata or {}, append=append
        )

    async def watch(self, path: str, *, recursive: bool = False, user: str | None = None) -> Watch:
        """Watch a directory, from now on. Invalid (``not_a_directory``) for a file."""
        stream = WatchStream(self._link, at_path(path))
        await begin(stream, OP_WATCH, files.place(path, user) + number(6, int(recursive), 1))
        return Watch(stream)

    def pack(self, *, hold: bool = False) -> AsyncGenerator[Sequence[carrying.Record]]:
        """Everything in the root file system: see :func:`wardian.guest.carrying.pack`."""
        return carrying.pack(self._link, hold=hold)

    async def unpack(self, batches: AsyncIterator[Iterable[carrying.Record]]) -> None:
        """Make and remove files as the records say: see :mod:`wardian.guest.carrying`."""
        await carrying.unpack(self._link, batches)

    async def _entry(self, op: int, body: bytes, refuse: Refuse) -> Entry:
        fields = await call(self._link, op, body, refuse)
        return parsed(self._link, files.entry_of, fields)

    # -- the rest

    async def dial(self, port: int) -> Tunnel:
        """Connect to a port inside. Unavailable (``port_not_open``) when nothing listens there."""
        return await tunnels.dial(self._link, port)

    async def stats(self) -> Mapping[str, int]:
        """What the guest claims; only the host's own numbers decide anything.

        mem_total, mem_available, mem_cached, disk_total, disk_used (bytes), processes, uptime_ns.
        """
        fields = await call(self._link, OP_STATS, b"", refused)
        return parsed(
            self._link,
            lambda told: {name: told.integer(tag, size) for tag, (name, size) in _STATS.items()},
            fields,
        )

    # -- what the guest says by itself

    def _on_control(self, kind: int, flags: int, payload: bytes) -> None:
        """A frame of stream 0."""
        if kind == HELLO:
            self._on_hello(flags, payload)
        elif self._link.attaching:
            return  # left over from before
        elif flags:
            raise Violation(f"unknown flags {flags:#x} on a frame of type {kind:#x}")
        elif kind == QUIESCED and not payload and self._quiesce_owed:
            self._quiesce_owed -= 1
            if self._quiesced is not None and not self._quiesced.done() and not self._quiesce_owed:
                self._quiesced.set_result(None)
        elif kind == NOTICE:
            notice = self._notices.take(payload)
            if notice is not None:
                self.on_notice(*notice)
        else:
            raise Violation(f"a frame of type {kind:#x} out of place")

    def _on_hello(self, flags: int, payload: bytes) -> None:
        if self._hello is None or self._hello.done() or flags not in (0, MORE):
            raise Violation("a HELLO out of place")
        # Of a HELLO that an earlier host did not live to read, any part may be missing.
        if payload.startswith(_HELLO_BEGINS):
            self._hello_parts = []
        elif not self._hello_parts:
            return
        self._hello_parts.append(payload)
        if sum(map(len, self._hello_parts)) + 64 * len(self._hello_parts) > _HELLO_MAX:
            raise Violation("a HELLO without an end")
        if flags & MORE:
            return
        parts, self._hello_parts = self._hello_parts, []
        token, failure, listed = parse_hello(parts)
        if token != self._attach_token:
            return  # the answer to a host that is no more
        self._link.attaching = False
        if failure is not None:
            self._link.fault(f"the guest could not take its identity: {failure}", code="identity_failed")
            return
        self._processes.attached(listed)
        self._hello.set_result(None)

    def _fail_waiters(self) -> None:
        for waiter in (self._hello, self._quiesced):
            if waiter is not None and not waiter.done():
                waiter.set_exception(self._link.failure())
                waiter.exception()  # there may be nobody

    def _on_open(self, stream_id: int, payload: bytes) -> None:
        """A stream that the guest opens."""
        op, told = payload[0], Fields(payload[1:])
        if op == OP_CONNECT:
            address, port = told.raw(6), told.integer(7, 2)
            if len(address) not in (4, 16):
                raise Violation(f"an address of {len(address)} bytes")
            if self._link.guest_streams >= CONNECTIONS_MAX:
                self._answer(stream_id, errno.EMFILE)
                return
            text = socket.inet_ntop(socket.AF_INET if len(address) == 4 else socket.AF_INET6, address)
            tunnel = tunnels.incoming(self._link, stream_id)
            task = self._spawn(self._connect(text, port, tunnel))
            tunnel.on_gone(task.cancel)
        elif op == OP_RESOLVE:
            query = told.raw(6)
            if self._resolving >= RESOLUTIONS_MAX:
                self._answer(stream_id, errno.EAGAIN)
                return
            self._resolving += 1
            self._spawn(self._resolve(stream_id, query))
        else:
            raise Violation(f"the guest opened a stream for op {op:#x}")

    async def _connect(self, address: str, port: int, tunnel: Incoming) -> None:
        reason = errno.ECONNABORTED
        try:
            await self.on_connect(address, port, tunnel)
            reason = 0
        except OSError as error:
            reason = error.errno if error.errno and 0 < error.errno < 4096 else errno.EIO
        except Exception:
            _log.exception("a connection from a guest to %s port %d failed", address, port)
            reason = errno.EIO
        finally:
            tunnel.refuse(reason)

    async def _resolve(self, stream_id: int, query: bytes) -> None:
        reason, reply = errno.EIO, b""
        try:
            reply = await self.on_resolve(query)
            reason = 0 if len(reply) <= _ANSWER_MAX else errno.EMSGSIZE
        except OSError:
            pass
        except Exception:
            _log.exception("a look-up for a guest failed")
        finally:
            self._resolving -= 1
            self._answer(stream_id, reason, field(6, reply) if not reason else b"")

    def _answer(self, stream_id: int, reason: int, fields: bytes = b"") -> None:
        self._link.send(REPLY, FIN, stream_id, reason.to_bytes(4, "little") + fields)

    def _spawn(self, work: Awaitable[None]) -> asyncio.Task[None]:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


__all__ = [
    "Entry",
    "Exit",
    "Guest",
    "GuestFault",
    "Identity",
    "Incoming",
    "Output",
    "Process",
    "ProcessConfig",
    "Tunnel",
    "Watch",
    "WatchEvent",
]
