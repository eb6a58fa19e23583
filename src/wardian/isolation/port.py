"""The isolation port: what can run a machine.

A *driver* (``gvisor/``, later ``qemu/`` and ``firecracker/``) makes *machines*. A machine has a kernel of its
own, no network card, and one *link*: a ``SOCK_SEQPACKET`` unix socket on which the guest agent speaks the
guest protocol (``guest/PROTOCOL.md``; one packet is one frame). Phases are types: a :class:`Prepared` machine
is booted but empty and holds nothing of any tenant; ``start`` or ``restore`` consumes it and yields a
:class:`Machine`.

Every method may be cancelled; a cancelled or failed ``start``/``restore`` leaves nothing behind once
``discard`` returns. A machine outlives the process that made it: ``Machine.record`` is JSON-able and is
all that ``Driver.attach`` needs after a restart.

The contract suite is ``tests/contract/``; every driver passes it.
"""

from __future__ import annotations

import socket
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wardian.model.errors import Kind, WardianError
from wardian.model.isolation import IsolationLevel
from wardian.model.resources import Resources


@dataclass(frozen=True, slots=True)
class Capabilities:
    """The outcome of a probe that really booted a machine.

    ``build`` identifies the exact substrate build (digest of its binary); ``cpu_features`` are what a machine
    captured here may rely on. An unusable driver says why (``reason``) and what to do (``remedy``).
    """

    driver: str
    level: IsolationLevel
    usable: bool
    version: str = ""
    build: str = ""
    cpu_features: frozenset[str] = frozenset()
    reason: str = ""
    remedy: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RootImage:
    """A read-only root file system: an EROFS file and its ``sha256:<hex>`` digest."""

    path: Path
    digest: str


@dataclass(frozen=True, slots=True)
class MachineSpec:
    """What a machine is made of. Nothing here belongs to a tenant."""

    root: RootImage
    resources: Resources


@dataclass(frozen=True, slots=True)
class MachineImage:
    """A captured machine: memory and disk at one instant, as plain files in ``directory``.

    ``files`` maps file name to size in bytes. ``root_digest`` is the root image that a restore must use.
    The directory is the caller's; the snapshot store makes it durable and atomic.
    """

    directory: Path
    files: Mapping[str, int]
    driver: str
    build: str
    cpu_features: frozenset[str]
    root_digest: str
    resources: Resources


@dataclass(frozen=True, slots=True)
class MachineStats:
    """What the host measured (never what the guest claims). Bytes and nanoseconds."""

    cpu_ns: int
    memory_bytes: int
    memory_limit_bytes: int
    memory_cache_bytes: int
    disk_bytes: int
    disk_limit_bytes: int
    processes: int


@dataclass(frozen=True, slots=True)
class MachineExit:
    """How a machine ended. ``reason`` is a stable slug: killed, exited, out_of_memory, crashed, lost."""

    reason: str
    detail: str = ""


class ImageRefused(WardianError):
    """This image cannot be restored here: damaged, made by another build, or needing CPU features we lack."""

    kind, code = Kind.CONFLICT, "image_refused"


class MachineGone(WardianError):
    """The machine is dead; see its :class:`MachineExit`."""

    kind, code = Kind.UNAVAILABLE, "machine_gone"


class Prepared(ABC):
    """A booted, empty machine waiting in a pool. It knows no tenant."""

    id: str
    spec: MachineSpec

    @abstractmethod
    async def park(self) -> None:
        """Make it cost no CPU while it waits. Idempotent; ``start`` and ``restore`` unpark by themselves."""

    @abstractmethod
    async def start(self) -> Machine:
        """Boot the guest agent in a fresh machine. The agent has sent nothing yet: attach it over the
        link."""

    @abstractmethod
    async def restore(self, image: MachineImage) -> Machine:
        """Become a clone of ``image``. Raises :class:`ImageRefused`; afterwards only ``discard`` is legal."""

    @abstractmethod
    async def discard(self) -> None:
        """Destroy it, also what it became, and everything it holds. Idempotent.

        Not after the machine it became was handed on: that one has a ``kill``.
        """


class Machine(ABC):
    """A running (or frozen) machine."""

    id: str
    spec: MachineSpec
    level: IsolationLevel
    link: socket.socket
    """Host end of the link: non-blocking ``SOCK_SEQPACKET``.

    Whoever gets the machine owns it and closes it; ``kill`` does not.
    """

    @property
    @abstractmethod
    def record(self) -> dict[str, Any]:
        """JSON-able facts, enough for ``Driver.attach`` in another process (host pids with start times,
        paths)."""

    @abstractmethod
    async def freeze(self) -> None:
        """Stop all guest CPU use; memory stays. Idempotent. Under a millisecond."""

    @abstractmethod
    async def thaw(self) -> None:
        """Undo ``freeze``. Idempotent."""

    @property
    @abstractmethod
    def frozen(self) -> bool:
        """Whether the machine is frozen now."""

    @abstractmethod
    async def capture(self, directory: Path, *, keep_running: bool) -> MachineImage:
        """Write memory and disk into the empty ``directory`` as one consistent instant.

        The caller has quiesced the guest agent first. With ``keep_running`` the machine goes on in the state
        (frozen or not) it had; without, it is dead when this returns. On failure the machine still runs.
        """

    @abstractmethod
    async def stats(self) -> MachineStats:
        """Host-side measurements; works while frozen."""

    @abstractmethod
    def on_memory_pressure(self, callback: Callable[[], None]) -> None:
        """Call ``callback`` (in the event loop) when memory use crosses the guard's threshold (about 92 %).

        Never called by a machine with a Linux kernel of its own, which relieves itself.
        """

    @abstractmethod
    async def kill(self) -> None:
        """End it at once and remove every process, cgroup, mount and file it held. Idempotent."""

    @abstractmethod
    async def wait(self) -> MachineExit:
        """Return when the machine has ended, for whatever reason. Cancellable; many waiters are fine."""


class Driver(ABC):
    """One way to run machines."""

    name: str
    level: IsolationLevel

    @abstractmethod
    async def probe(self) -> Capabilities:
        """Boot a real machine, exchange a byte with it, and say what works. Never raises; slow (up to
        seconds)."""

    @abstractmethod
    async def prepare(self, spec: MachineSpec) -> Prepared:
        """Boot an empty machine. Limits (memory, CPU, processes, disk) hold from its first instruction."""

    @abstractmethod
    async def attach(self, record: Mapping[str, Any]) -> Machine:
        """Take over a machine made by an earlier process. Raises :class:`MachineGone` if it is dead."""

    @abstractmethod
    async def sweep(self, known: Set[str]) -> list[str]:
        """Destroy every machine of this driver's state directory whose id is not in ``known``; return their
        ids.

        This is the reconciler's broom: it also finds half-made machines (a crash inside ``prepare``).
        """

    @abstractmethod
    async def close(self) -> None:
        """Let go of everything in this process. Machines go on running."""


__all__ = [
    "Capabilities",
    "Driver",
    "ImageRefused",
    "IsolationLevel",
    "Machine",
    "MachineExit",
    "MachineGone",
    "MachineImage",
    "MachineSpec",
    "MachineStats",
    "Prepared",
    "RootImage",
]
