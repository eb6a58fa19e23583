"""What a server removes now and then: whatever is over, by the retention that its operator chose."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping

from wardian.model.errors import WardianError

EVERY_S = 600.0

_log = logging.getLogger(__name__)

Chore = Callable[[], Awaitable[object]]
"""May be cancelled at any instant, and is begun anew by the next server."""


class Janitor:
    """Does its chores from :meth:`start` to :meth:`close`, one after the other: at once, which finishes what
    an earlier server began, and then every ``every_s``. One that fails is tried again in the next round."""

    def __init__(self, chores: Mapping[str, Chore], every_s: float = EVERY_S) -> None:
        self._chores, self._every_s = chores, every_s

    def start(self) -> None:
        self._task = asyncio.create_task(self._forever(), name="janitor")

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _forever(self) -> None:
        while True:
            for name, chore in self._chores.items():
                await self._do(name, chore)
            await asyncio.sleep(self._every_s)

    async def _do(self, name: str, chore: Chore) -> None:
        try:
            await chore()
        except WardianError as error:
            _log.warning("not swept: %s: %s", name, error)
        except Exception:  # whatever is wrong with one, the others are due
            _log.exception("not swept: %s", name)


__all__ = ["Janitor"]
