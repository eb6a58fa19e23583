"""Volumes inside sandboxes: each mount is a stream of file requests, answered one after the other.

The guest keeps its mounts in its memory, so they are captured and restored with it, and its programs wait
while nobody answers. A mount is made by asking for it, and taken up again the same way: after a pause, a
fork, or in a new server.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Coroutine, Sequence
from functools import partial
from typing import Protocol

from wardian.guest.guest import Guest
from wardian.guest.mounts import MountStream
from wardian.model.errors import NotFound, WardianError
from wardian.model.sandbox import Sandbox
from wardian.model.volume import VolumeMount
from wardian.volumes.fuse import Readable, Session, waits_for_disk
from wardian.volumes.service import Volumes
from wardian.volumes.tree import Tree

AT_ONCE_MAX = 16
"""Requests of one mount that may be answered within one turn of the event loop."""

_log = logging.getLogger(__name__)


class Beside(Protocol):
    """What else may be mounted in a sandbox."""

    async def mount(self, sandbox: Sandbox, guest: Guest) -> bool:
        """Mount it, if there is anything."""

    async def inherit(self, parent: Sandbox, child: Sandbox) -> None:
        """A fork has in its memory what its parent has mounted."""


class Nothing:
    """Volumes are all there is."""

    async def mount(self, sandbox: Sandbox, guest: Guest) -> bool:
        return False

    async def inherit(self, parent: Sandbox, child: Sandbox) -> None:
        return None


class Mounts:
    """Every mount that this server answers for. ``beside`` is set by whoever has more than volumes."""

    beside: Beside

    def __init__(self, volumes: Volumes) -> None:
        self._volumes = volumes
        self._tasks: set[asyncio.Task[None]] = set()
        self.beside = Nothing()

    async def mount(self, guest: Guest, sandbox: Sandbox) -> None:
        """Give an attached guest what is mounted in its sandbox, and take away others that its memory may
        hold. Raises what a guest says no with, and NotFound when a volume is gone.
        """
        volumes = sandbox.spec.volume_mounts
        await self._mount_volumes(guest, volumes)
        if await self.beside.mount(sandbox, guest) or volumes or sandbox.snapshot_id is not None:
            await guest.unmount_others()

    async def inherit(self, parent: Sandbox, child: Sandbox) -> None:
        """Let a fork have what its parent has mounted. Its volumes are in what it was asked for."""
        await self.beside.inherit(parent, child)

    async def _mount_volumes(self, guest: Guest, mounts: Sequence[VolumeMount]) -> None:
        for each in mounts:
            await self._volumes.do(each.volume_id, _exists)
            stream = await guest.mount(each.path, each.volume_id)
            self._spawn(self._serve(each.volume_id, stream), f"volume {each.volume_id}")

    async def mount_readable(self, guest: Guest, path: str, name: str, tree: Readable) -> None:
        """Mount what can only be read, and waits for no disk. Raises what a guest says no with."""
        stream = await guest.mount(path, name)
        self._spawn(_serve_readable(stream, tree), f"{name} at {path}")

    def _spawn(self, serving: Coroutine[None, None, None], name: str) -> None:
        task = asyncio.create_task(serving, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Stop answering. The guests wait for the next server."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _serve(self, volume_id: str, stream: MountStream) -> None:
        session = Session()
        try:
            while True:
                packets = await stream.requests()
                for answer in await self._answers(volume_id, session, packets):
                    await stream.answer(answer)
        except ValueError as malformed:
            stream.link.fault(f"the guest broke the protocol: {malformed}")
        except NotFound as gone:
            _log.error("volume %s went while it was mounted: %s", volume_id, gone)
        except WardianError:
            pass  # the guest was let go of
        # Not when this server stops: the guest goes on, with its files open.
        with contextlib.suppress(NotFound):
            await self._volumes.do(volume_id, session.close)

    async def _answers(self, volume_id: str, session: Session, packets: Sequence[bytes]) -> list[bytes]:
        """A few small requests are answered here and now, which takes less than asking a thread to."""
        work = partial(_handle, session, packets)
        if len(packets) <= AT_ONCE_MAX and not any(waits_for_disk(packet) for packet in packets):
            answers = self._volumes.at_once(volume_id, work)
            if answers is not None:
                return answers
        return await self._volumes.do(volume_id, work)


def _handle(session: Session, packets: Sequence[bytes], tree: Tree) -> list[bytes]:
    return [answer for each in packets if (answer := session.handle(tree, each)) is not None]


def _exists(tree: Tree) -> None:
    pass


async def _serve_readable(stream: MountStream, tree: Readable) -> None:
    session = Session(read_only=True, lasts=tree.lasts)
    try:
        while True:
            for packet in await stream.requests():
                if (answer := session.handle(tree, packet)) is not None:
                    await stream.answer(answer)
            await asyncio.sleep(0)  # others have their turn, however much a kernel asks
    except ValueError as malformed:
        stream.link.fault(f"the guest broke the protocol: {malformed}")
    except WardianError:
        pass  # the guest was let go of
