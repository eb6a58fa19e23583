"""What the host can ask of one guest, in Python terms. The wire is ``guest/PROTOCOL.md``."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Identity:
    """What makes a clone itself. Applied by the agent before it is called ready."""

    hostname: str
    machine_id: str
    boot_id: str | None = None
    files: Mapping[str, tuple[int, bytes]] = field(default_factory=dict)  # path -> (mode, content)


@dataclass(frozen=True, slots=True)
class Entry:
    """One file system entry as the guest reports it. ``type`` is file, directory or other; times in ns."""

    name: str
    type: str
    path: str
    size: int
    mode: int
    owner: str
    group: str
    mtime_ns: int
    symlink_target: str | None
    metadata: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class ProcessConfig:
    """What was asked to run; carried as the exec's label, so it survives restarts and clones."""

    cmd: str
    args: tuple[str, ...]
    envs: Mapping[str, str]
    cwd: str | None
    tag: str | None = None


@dataclass(frozen=True, slots=True)
class Exit:
    """How a process ended: a wait status decoded. ``exit_code`` is -1 when a signal ended it."""

    exit_code: int
    exited: bool
    status: str  # "exit status 0", "signal: killed"
    signal: int | None = None


@dataclass(frozen=True, slots=True)
class Output:
    """A piece of output. ``channel`` is stdout, stderr or pty."""

    channel: str
    data: bytes


class Process:
    """One process in the guest. Output goes to live subscribers only; with none it is read and dropped."""

    pid: int
    config: ProcessConfig
    pty: bool
    exit: Exit | None  # set as soon as the process is reaped (its output may still be open)

    def subscribe(self) -> AsyncIterator[Output | Exit]:
        """From now on: every Output, and last the Exit. Bounded: a slow subscriber slows the process."""
        raise NotImplementedError

    async def write(self, data: bytes) -> None: ...
    async def close_stdin(self) -> None: ...
    async def signal(self, signo: int, *, group: bool = False) -> None: ...
    async def resize(self, cols: int, rows: int) -> None: ...


class Tunnel:
    """A byte stream to a port inside, with flow control. ``read`` returns b"" at the end."""

    async def read(self, limit: int = 65536) -> bytes: ...
    async def write(self, data: bytes) -> None: ...
    async def write_eof(self) -> None: ...
    async def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class WatchEvent:
    """``type`` is create, write, remove, rename, chmod or overflow; ``name`` is relative to the watched directory."""

    type: str
    name: str


class Watch:
    def __aiter__(self) -> AsyncIterator[WatchEvent]: ...
    async def sync(self) -> None:
        """Return when every event the guest's kernel has queued so far has been delivered to the iterator's queue."""

    def take(self) -> Sequence[WatchEvent]:
        """Everything queued now, without waiting."""

    async def close(self) -> None: ...


class Guest:
    """The host's end of one machine's link."""

    def __init__(self, link: socket.socket) -> None: ...

    async def attach(
        self, epoch: int, identity: Identity | None = None, *, timeout_s: float = 10
    ) -> None: ...
    async def close(self) -> None: ...

    processes: Mapping[int, Process]  # by pid: alive, or ended less than 30 s ago

    async def exec(
        self,
        config: ProcessConfig,
        *,
        user: str | None = None,
        env: Mapping[str, str] = {},  # noqa: B006 - sandbox-wide values; config.envs override
        pty: tuple[int, int] | None = None,  # cols, rows
        stdin: bool = False,
    ) -> Process: ...
    async def stat(self, path: str, *, user: str | None = None) -> Entry: ...
    async def list(self, path: str, *, depth: int = 1, user: str | None = None) -> Sequence[Entry]: ...
    async def mkdir(self, path: str, *, user: str | None = None) -> Entry: ...
    async def move(self, source: str, destination: str, *, user: str | None = None) -> Entry: ...
    async def remove(self, path: str, *, user: str | None = None) -> None: ...
    async def read(
        self, path: str, *, offset: int = 0, length: int | None = None, user: str | None = None
    ) -> tuple[Entry, AsyncIterator[bytes]]: ...
    async def write(
        self,
        path: str,
        chunks: AsyncIterator[bytes],
        *,
        user: str | None = None,
        mode: int = 0o644,
        metadata: Mapping[str, str] | None = None,
        append: bool = False,
    ) -> Entry: ...
    async def watch(self, path: str, *, recursive: bool = False, user: str | None = None) -> Watch: ...
    async def dial(self, port: int) -> Tunnel: ...
    async def stats(self) -> Mapping[str, int]: ...
    async def quiesce(self) -> None: ...
    async def unquiesce(self) -> None: ...
    async def relieve_memory(self) -> None: ...

    # set by the owner before attach
    on_connect: Callable[
        [str, int, Tunnel], Awaitable[None]
    ]  # outbound: address, port, stream; raise OSError to refuse
    on_resolve: Callable[[bytes], Awaitable[bytes]]
    on_notice: Callable[[str, Mapping[str, object]], None]
    on_fault: Callable[
        [Exception], None
    ]  # the link broke or the guest misbehaved: the machine is not to be trusted
