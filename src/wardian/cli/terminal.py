"""A real terminal in a sandbox: raw mode, resizing, the exit status, and a way out when nothing answers."""

from __future__ import annotations

import asyncio
import base64
import os
import signal
import sys
import termios
import tty
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress

from wardian.cli.envd import Envd
from wardian.cli.processes import (
    OWN_FAILURE,
    STDIN,
    BytesFrom,
    Command,
    exit_status,
    pty_size,
    send_signal,
    write_output,
)
from wardian.model.errors import Invalid, WardianError

GOODBYE_S = 3
"""How long hanging up may take when nothing answers any more."""


class Escape:
    """Finds ``~.`` typed at the beginning of a line, as ssh does: leave, whatever the other side is doing."""

    def __init__(self) -> None:
        self._seen = b"\r"

    def feed(self, typed: bytes) -> bool:
        """Whether the escape is complete with these bytes."""
        for byte in typed:
            key = bytes([byte])
            if key in b"\r\n":
                self._seen = b"\r"
            elif self._seen + key in (b"\r~", b"\r~."):
                self._seen += key
                if self._seen == b"\r~.":
                    return True
            else:
                self._seen = b""
        return False


def size() -> tuple[int, int]:
    """Columns and rows of our terminal."""
    columns, rows = os.get_terminal_size(STDIN)
    return columns or 80, rows or 24


@contextmanager
def raw() -> Iterator[None]:
    """Every key goes through as it is, until the end, however it comes."""
    before = termios.tcgetattr(STDIN)
    tty.setraw(STDIN)
    try:
        yield
    finally:
        termios.tcsetattr(STDIN, termios.TCSADRAIN, before)


async def attach(envd: Envd, command: Command) -> int:
    """Run ``command`` on our terminal and return its exit status; 125 after the escape or a hang-up.

    Raises :class:`Invalid` when standard input is no terminal, WardianError when the connection breaks.
    """
    if not sys.stdin.isatty():
        raise Invalid("standard input is not a terminal", hint="use `wardian sandbox exec` in scripts")
    async with envd.follow("process.Process/Start", command.request) as events:
        pid = (await anext(events))["event"]["start"]["pid"]
        loop, resized, left = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()
        with raw():
            loop.add_signal_handler(signal.SIGWINCH, resized.set)
            for signo in (signal.SIGHUP, signal.SIGTERM):
                loop.add_signal_handler(signo, left.set)
            resized.set()  # it may have changed since we asked
            work = [
                loop.create_task(_type(envd, pid, left)),
                loop.create_task(_resize(envd, pid, resized)),
            ]
            show = loop.create_task(_show(events))
            leave = loop.create_task(left.wait())
            try:
                await asyncio.wait((show, leave), return_when=asyncio.FIRST_COMPLETED)
                if show.done():
                    return show.result()
                with suppress(TimeoutError):
                    await asyncio.wait_for(send_signal(envd, pid, signal.SIGHUP), GOODBYE_S)
                return OWN_FAILURE
            finally:
                for signo in (signal.SIGWINCH, signal.SIGHUP, signal.SIGTERM):
                    loop.remove_signal_handler(signo)
                for task in (*work, show, leave):
                    task.cancel()
                await asyncio.gather(*work, show, leave, return_exceptions=True)


async def _show(events: AsyncIterator[dict[str, dict[str, dict[str, str]]]]) -> int:
    async for event in events:
        if data := event["event"].get("data"):
            for channel, text in data.items():
                write_output(channel, base64.b64decode(text))
        elif "end" in event["event"]:
            return exit_status(event["event"]["end"])
    raise WardianError("the terminal's stream ended without its end", code="stream_broken")


async def _type(envd: Envd, pid: int, left: asyncio.Event) -> None:
    escape = Escape()

    async def keys() -> AsyncIterator[bytes]:
        async for typed in BytesFrom(STDIN):
            if escape.feed(typed):
                left.set()
                return
            yield typed

    with suppress(WardianError):  # the output stream tells how it ended
        await envd.feed(pid, "pty", keys())


async def _resize(envd: Envd, pid: int, resized: asyncio.Event) -> None:
    while True:
        await resized.wait()
        resized.clear()
        with suppress(WardianError):
            await envd.call("process.Process/Update", {"process": {"pid": pid}, "pty": pty_size(size())})
