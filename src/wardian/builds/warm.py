"""The end of a build: what is to run is started and found ready, before it is captured with its memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from wardian.builds import inside
from wardian.builds.errors import BuildFailed
from wardian.builds.inside import Lines, Say
from wardian.guest.guest import Output, Process, ProcessConfig
from wardian.model.build import Surroundings
from wardian.model.errors import Unavailable
from wardian.sandboxes.benches import Bench

ENVIRONMENT = {"E2B_SANDBOX": "true"}
POLL_FIRST_S, POLL_MAX_S = 0.1, 2.0
CHECK_MAX_S = 60.0
"""How long one run of the ready check may take."""

SETTLED_CORES = 0.15
"""A machine that uses less of a core than this has nothing left to begin."""

SETTLE_EVERY_S, SETTLE_LOOKS, SETTLE_MAX_S = 0.25, 4, 20.0
"""Without a ready check: so often we look, so often in a row it must be at rest, so long we wait at most."""


@dataclass(frozen=True, slots=True)
class Starting:
    """What is to run in every sandbox of a template, and how one knows that it does.

    Without ``ready`` the ``ports`` are waited for, and without these until the machine has come to rest; both
    for at most ``SETTLE_MAX_S``.
    """

    start: str
    ready: str
    timeout_s: float
    ports: Sequence[int]
    surroundings: Surroundings


async def start(bench: Bench, starting: Starting, say: Say) -> None:
    """Start it, and return when it is ready. Raises :class:`BuildFailed`."""
    say(f"starting: {starting.start}")
    around = starting.surroundings
    config = ProcessConfig("/bin/bash", ("-l", "-c", starting.start), around.env, around.workdir)
    process = await bench.guest.exec(config, user=around.user, env=ENVIRONMENT)
    lines = Lines(say)
    async with _followed(process, lines):
        try:
            async with asyncio.timeout(starting.timeout_s):
                await _until_ready(bench, starting, process, lines, say)
        except TimeoutError:
            raise BuildFailed(
                f"the start command was not ready within {starting.timeout_s:g} s: {starting.start}",
                output=tuple(lines.last),
                hint="does the ready check succeed when it is run by hand in a sandbox?",
            ) from None
    say("ready")


async def _until_ready(bench: Bench, starting: Starting, process: Process, lines: Lines, say: Say) -> None:
    if not starting.ready and not starting.ports:
        await _until_at_rest(bench, process, starting, lines)
        return
    loop = asyncio.get_running_loop()
    pause, gives_up = POLL_FIRST_S, loop.time() + SETTLE_MAX_S
    while not await (_succeeds(bench, starting, say) if starting.ready else _listens(bench, starting.ports)):
        _check_alive(process, starting, lines)
        if not starting.ready and loop.time() > gives_up:
            say(f"not every port of {', '.join(map(str, starting.ports))} is open; going on")
            break
        await asyncio.sleep(pause)
        pause = min(2 * pause, POLL_MAX_S)
    _check_alive(process, starting, lines)


async def _succeeds(bench: Bench, starting: Starting, say: Say) -> bool:
    around = starting.surroundings
    try:
        async with asyncio.timeout(CHECK_MAX_S):
            ended = await inside.run(
                bench.guest,
                ("/bin/bash", "-l", "-c", starting.ready),
                user=around.user,
                env=around.env,
                hidden=ENVIRONMENT,
                cwd=around.workdir,
            )
    except TimeoutError:
        say(f"the ready check took more than {CHECK_MAX_S:g} s; trying again")
        return False
    return ended.exited and not ended.exit_code


async def _listens(bench: Bench, ports: Sequence[int]) -> bool:
    for port in ports:
        try:
            await (await bench.guest.dial(port)).close()
        except Unavailable:
            return False
    return True


async def _until_at_rest(bench: Bench, process: Process, starting: Starting, lines: Lines) -> None:
    loop = asyncio.get_running_loop()
    ends = loop.time() + SETTLE_MAX_S
    at_rest = 0
    before = (await bench.stats()).cpu_ns
    while at_rest < SETTLE_LOOKS and loop.time() < ends:
        await asyncio.sleep(SETTLE_EVERY_S)
        now = (await bench.stats()).cpu_ns
        at_rest = at_rest + 1 if now - before < SETTLED_CORES * SETTLE_EVERY_S * 1e9 else 0
        before = now
        _check_alive(process, starting, lines)


def _check_alive(process: Process, starting: Starting, lines: Lines) -> None:
    """It may end well, having left something in the background; what fails is nothing to wait for."""
    ended = process.exit
    if ended is not None and (ended.exit_code or not ended.exited):
        raise BuildFailed(
            f"the start command failed: {starting.start}: {ended.status}", output=tuple(lines.last)
        )


@asynccontextmanager
async def _followed(process: Process, lines: Lines) -> AsyncIterator[None]:
    """Say what the process says, as long as the context lasts; it runs on afterwards."""
    events = process.subscribe()

    async def follow() -> None:
        async for event in events:
            if isinstance(event, Output):
                lines.feed(event)
        lines.finish()

    following = asyncio.create_task(follow(), name="start command's output")
    try:
        yield
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
