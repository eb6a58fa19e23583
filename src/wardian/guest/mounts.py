"""MOUNT: a file system inside whose requests the host answers, one packet a frame."""

from __future__ import annotations

import asyncio
from collections import deque

from wardian.guest.errors import Refuse
from wardian.guest.frames import CHANNEL_PLAIN, GRANT, OP_MOUNT, WINDOW, Violation, field
from wardian.guest.link import Link
from wardian.guest.streams import GRANT_FROM, Answered, Outflow, again, begin
from wardian.model.errors import WardianError

PACKET_MIN = 16


class MountStream(Answered):
    """A mount, wire side. It lasts until the guest is let go of; what comes through is FUSE, unread."""

    __slots__ = ("_consumed", "_end", "_outflow", "_packets", "_waiter", "_window")

    def __init__(self, link: Link, refuse: Refuse) -> None:
        super().__init__(link, refuse, unary=False)
        self._outflow = Outflow(self)
        self._packets: deque[bytes] = deque()
        self._window, self._consumed = WINDOW, 0
        self._waiter: asyncio.Future[None] | None = None
        self._end: WardianError | None = None

    async def requests(self) -> list[bytes]:
        """All that has arrived, at least one. Raises why the mount is over."""
        while not self._packets:
            if self._end is not None:
                raise again(self._end)
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        packets = list(self._packets)
        self._packets.clear()
        self._consumed += sum(map(len, packets))
        if self._consumed >= GRANT_FROM:
            self._window += self._consumed
            self.link.send(GRANT, 0, self.id, self._consumed.to_bytes(4, "little"))
            self._consumed = 0
        return packets

    async def answer(self, packet: bytes) -> None:
        """Send one packet of at most a frame's size. Raises why the mount is over."""
        await self._outflow.send_whole(packet)

    def on_data(self, channel: int, payload: memoryview) -> None:
        # It may overtake the REPLY: another thread of the agent sends it.
        self._window -= len(payload)
        if channel != CHANNEL_PLAIN or len(payload) < PACKET_MIN or self._window < 0:
            raise Violation("DATA of a mount that is no packet, or beyond the window")
        self._packets.append(bytes(payload))
        self._wake()

    def on_grant(self, size: int) -> None:
        self._outflow.granted(size)

    def accepted(self, fields: bytes) -> None:
        """Its answers are sent even while the guest comes to rest: it cannot rest without them."""
        self.link.never_hold(self.id)

    def fail(self, error: WardianError) -> None:
        super().fail(error)
        self._end = error
        self._packets.clear()
        self._outflow.stop(error)
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


async def mount(link: Link, path: bytes, volume_id: bytes, refuse: Refuse) -> MountStream:
    """Mount at ``path``, or take over what is mounted there already. Raises what ``refuse`` says."""
    stream = MountStream(link, refuse)
    await begin(stream, OP_MOUNT, field(2, path) + field(3, volume_id))
    return stream
