"""What every owner works with: one value, put together by the service."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from wardian.guest.guest import Guest, Tunnel
from wardian.isolation.drivers import Drivers
from wardian.isolation.port import MachineImage, RootImage
from wardian.model.errors import Unsupported
from wardian.model.sandbox import Sandbox
from wardian.recorder.log import Recorder
from wardian.sandboxes.leases import NodeLease
from wardian.sandboxes.pool import Pool
from wardian.snapshots.store import SnapshotStore
from wardian.store.clock import now_us
from wardian.store.database import Database


class Outbound(Protocol):
    """Where a guest's connections go: the host's side of the shore."""

    async def connect(self, sandbox: Sandbox, address: str, port: int, stream: Tunnel) -> None:
        """Relay ``stream`` to its destination until it ends. Raise ``OSError`` to refuse."""

    async def resolve(self, sandbox: Sandbox, query: bytes) -> bytes:
        """Answer a DNS query packet. Raise ``OSError`` to fail it."""

    def changed(self, sandbox: Sandbox) -> None:
        """The sandbox's rules are others now: end the connections that they forbid."""

    def forget(self, sandbox_id: str) -> None:
        """The sandbox has ended."""


class Isolated:
    """No way out: what a server without a network has."""

    async def connect(self, sandbox: Sandbox, address: str, port: int, stream: Tunnel) -> None:
        raise ConnectionRefusedError("this server gives its sandboxes no network")

    async def resolve(self, sandbox: Sandbox, query: bytes) -> bytes:
        raise ConnectionRefusedError("this server gives its sandboxes no network")

    def changed(self, sandbox: Sandbox) -> None:
        return None

    def forget(self, sandbox_id: str) -> None:
        return None


class Mounter(Protocol):
    """Gives guests their volumes."""

    async def mount(self, guest: Guest, sandbox: Sandbox) -> None:
        """Mount what is the sandbox's in an attached guest, and take away whatever else it has mounted."""

    async def inherit(self, parent: Sandbox, child: Sandbox) -> None:
        """Let a fork, which has no machine yet, have what its parent has mounted."""


class Passport(Protocol):
    """What a sandbox gets so that it can ask the bridge."""

    def environment(self, sandbox: Sandbox, epoch: int | None = None) -> Mapping[str, str]:
        """Variables that its processes start with."""

    def files(self, sandbox: Sandbox, epoch: int) -> Mapping[str, tuple[int, bytes]]:
        """Modes and contents of files, told with its identity."""

    async def equip(self, guest: Guest, sandbox: Sandbox) -> None:
        """Whatever else it needs, in an attached guest."""


class NoBridge:
    """A server without a bridge."""

    def environment(self, sandbox: Sandbox, epoch: int | None = None) -> Mapping[str, str]:
        return {}

    def files(self, sandbox: Sandbox, epoch: int) -> Mapping[str, tuple[int, bytes]]:
        return {}

    async def equip(self, guest: Guest, sandbox: Sandbox) -> None:
        return None


class NoVolumes:
    """A server without volumes."""

    async def mount(self, guest: Guest, sandbox: Sandbox) -> None:
        if sandbox.spec.volume_mounts:
            raise Unsupported("this server has no volumes", code="volumes_unsupported")

    async def inherit(self, parent: Sandbox, child: Sandbox) -> None:
        return None


class Inspector(Protocol):
    """Looks for secrets in what is about to be published."""

    async def inspect(self, tenant: str, snapshot_id: str, image: MachineImage) -> Inspection:
        """Search it. Raises :class:`SecretFound`, and nothing may be published then."""


class Inspection(Protocol):
    """A search that found nothing."""

    async def attest(self, digest: str) -> None:
        """Say so of the snapshot whose manifest has that digest."""


class Trusting:
    """A server that knows no secrets."""

    async def inspect(self, tenant: str, snapshot_id: str, image: MachineImage) -> Trusting:
        return self

    async def attest(self, digest: str) -> None:
        return None


@dataclass(frozen=True, slots=True)
class Options:
    """Bounds and times of a node's lifecycle, in seconds where not said otherwise."""

    timeout_max_s: int = 24 * 3600
    sandboxes_max: int = 1000  # per tenant, running and paused
    fork_max: int = 100
    idle_grace_s: float = 0.1  # after the last use, before a sandbox without processes is frozen
    freeze_idle: bool = True
    pause_retry_s: float = 30  # when a pause at timeout fails, the sandbox goes on this long
    sample_every_s: float = 5
    guest_timeout_s: float = 10
    hot: Mapping[str, int] = field(default_factory=dict)  # machines that always wait, by name of the house's


def no_checkpoint(_name: str) -> None:
    """Production has no fault injection."""


@dataclass(frozen=True, slots=True)
class Workshop:
    """Shared by the owners of one node. ``checkpoint`` is called at every boundary a crash may fall on."""

    database: Database
    drivers: Drivers
    snapshots: SnapshotStore
    recorder: Recorder
    lease: NodeLease
    pool: Pool
    root_image: Callable[[str], RootImage]  # by digest
    outbound: Outbound = field(default_factory=Isolated)
    volumes: Mounter = field(default_factory=NoVolumes)
    bridge: Passport = field(default_factory=NoBridge)
    inspector: Inspector = field(default_factory=Trusting)
    options: Options = field(default_factory=Options)
    now_us: Callable[[], int] = now_us
    checkpoint: Callable[[str], None] = no_checkpoint
