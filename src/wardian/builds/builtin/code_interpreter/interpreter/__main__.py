"""``python3 -m interpreter``: serve on port 49999 until told to stop."""

from __future__ import annotations

import asyncio
from types import FrameType

import uvicorn

from .contexts import Contexts
from .languages import Languages
from .server import build_app
from .zygote import Zygote

PORT = 49999


class Server(uvicorn.Server):
    """Without the tick, ten times a second, that would keep an idle machine busy."""

    async def main_loop(self) -> None:
        self._over = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        await self.on_tick(0)
        await self._over.wait()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        super().handle_exit(sig, frame)
        self._loop.call_soon_threadsafe(self._over.set)


if __name__ == "__main__":
    app = build_app(Contexts(Languages(Zygote())))
    config = uvicorn.Config(
        app,
        host="0.0.0.0",
        port=PORT,
        log_level="warning",
        timeout_keep_alive=640,
        date_header=False,  # it would be the one of the start
    )
    Server(config).run()
