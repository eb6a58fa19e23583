"""Snapshots that nobody has used for a while are compressed, in the background and one after the other.

Never those that a template's sandboxes are made from, which must come quickly; nor one that a sandbox which
runs was made from: its machine maps the file, so no room would come of it. A pause, a kept snapshot or a
commit of a run is at rest until it is loaded; ``after_s`` later it is again.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress

from wardian.model.errors import WardianError
from wardian.sandboxes.workshop import Workshop
from wardian.store import snapshots

ROUNDS = 4
"""How often per ``after_s`` is looked for what has come to rest."""
ROUND_MAX_S = 600.0

_log = logging.getLogger(__name__)


class Compressor:
    """Begins with ``start``; ``after_s`` of 0 is never. ``close`` ends it at once, in mid-file too."""

    def __init__(self, works: Workshop, after_s: float) -> None:
        self._works, self._after_s = works, after_s
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to look, unless it is never."""
        if not self._after_s:
            return
        self._task = asyncio.create_task(self._forever(), name="compress snapshots")

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    async def _forever(self) -> None:
        while True:
            await asyncio.sleep(min(self._after_s / ROUNDS, ROUND_MAX_S))
            try:
                await self.round()
            except WardianError as error:
                _log.warning("snapshots are not compressed now: %s", error)

    async def round(self) -> list[str]:
        """Compress whatever is at rest; return the ids of what was compressed."""
        store, done = self._works.snapshots, []
        for snapshot_id in await self._works.database.read(snapshots.at_rest):
            try:
                if await store.compress(snapshot_id, unused_s=self._after_s):
                    done.append(snapshot_id)
                    _log.info("snapshot %s was compressed", snapshot_id)
            except (
                WardianError
            ) as error:  # the disk is full, say: the next may be smaller, or tomorrow better
                _log.warning("snapshot %s is not compressed: %s", snapshot_id, error)
        return done
