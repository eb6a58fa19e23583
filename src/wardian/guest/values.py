"""What is told about a guest: plain values."""

from __future__ import annotations

from collections.abc import Mapping
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
    """One file system entry as the guest reports it. ``type`` is file, directory or other; times in ns.

    ``mode`` holds the permission bits. The type is what a symlink points to; everything else is the link's
    own.
    """

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
    """What was asked to run; carried as the exec's label, so it survives restarts and clones.

    A label holds 16 KiB: of a longer configuration, the environment and then the arguments are lost to
    whoever attaches later (the process itself gets all of it).
    """

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


@dataclass(frozen=True, slots=True)
class WatchEvent:
    """``type`` is create, write, remove, rename, chmod or overflow; ``name`` is relative to the watched
    directory.
    """

    type: str
    name: str
