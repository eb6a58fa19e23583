"""The queue of one owner: commands run one after another, in a task that outlives whoever asked."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

T = TypeVar("T")


class Commands:
    """A queue that is worked off in order. It has a task only while there is something to do."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._queue: deque[tuple[Callable[[], Awaitable[Any]], asyncio.Future[Any]]] = deque()
        self._task: asyncio.Task[None] | None = None

    @property
    def idle(self) -> bool:
        """Whether nothing is being done and nothing waits."""
        return self._task is None

    def put(self, command: Callable[[], Awaitable[T]]) -> asyncio.Future[T]:
        """Run ``command`` after everything queued before it. Cancelling the future does not stop it."""
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._queue.append((command, future))
        if self._task is None:
            self._task = asyncio.create_task(self._work(), name=self._name)
        return future

    async def _work(self) -> None:
        try:
            while self._queue:
                command, future = self._queue.popleft()
                await _settle(command, future)
        finally:
            self._task = None
            for _, future in self._queue:
                future.cancel()
            self._queue.clear()

    async def close(self, patience_s: float) -> None:
        """Let what was begun finish for ``patience_s``, then stop it where it stands."""
        task = self._task
        if task is not None:
            await asyncio.wait({task}, timeout=patience_s)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def _settle(command: Callable[[], Awaitable[T]], future: asyncio.Future[T]) -> None:
    try:
        result = await command()
    except asyncio.CancelledError:
        future.cancel()
        raise
    except Exception as error:
        if not future.done():
            future.set_exception(error)
    else:
        if not future.done():
            future.set_result(result)
