"""Volumes inside sandboxes: each mount is a stream of file requests, answered one after the other.

The guest keeps its mounts in its memory, so they are captured and restored with it, and its programs wait
while nobody answers. A mount is made by asking for it, and taken up again the same way: after a pause, a
fork, or in a new server.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from functools import partial

from wardian.guest.guest import Guest
from wardian.guest.mounts import MountStream
from wardian.model.errors import NotFound, WardianError
from wardian.model.volume import VolumeMount
from wardian.volumes.fuse import Session, waits_for_disk
from wardian.volumes.service import Volumes
from wardian.volumes.tree import Tree

AT_ONCE_MAX = 16
"""Requests of one mount that may be answered within one turn of the event loop."""

_log = logging.getLogger(__name__)


class Mounts:
    """Every mount that this server answers for."""

    def __init__(self, volumes: Volumes) -> None:
        self._volumes = volumes
        self._tasks: set[asyncio.Task[None]] = set()

    async def mount(self, guest: Guest, mounts: Sequence[VolumeMount]) -> None:
        """Give an attached guest its volumes, and take away others that its memory may hold.

        Raises what a guest says no with, and NotFound when a volume is gone.
        """
        for each in mounts:
            await self._volumes.do(each.volume_id, _exists)
            stream = await guest.mount(each.path, each.volume_id)
            task = asyncio.create_task(self._serve(each.volume_id, stream), name=f"volume {each.volume_id}")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        await guest.unmount_others()

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
