"""A release proves itself in the sandbox that shall get it, before it counts there.

It is looked over by the interpreter that will run it: every file compiles, what it names imports, and the
answer is the digest of the tree as it is seen inside with the challenge that only our mount has. And its own
self-test ends with 0. All of it in bounded time, with bounded output; what is beyond is a failure.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Mapping
from contextlib import suppress

from wardian.guest.guest import Exit, Guest
from wardian.model.errors import Kind, WardianError
from wardian.model.runner import Language
from wardian.runners.launching import CHECK_TAG, Launch, checking, command
from wardian.runners.store import Opened

CHECK_S = 45.0
"""An emulated machine takes its time, the first time."""
OUTPUT_BYTES_MAX = 64 << 10
WORDS_MAX = 1500


class RunnerFault(WardianError):
    """A release does not work in a sandbox, or the sandbox lets none in."""

    kind, code = Kind.CONFLICT, "runner_does_not_start"


async def prove(
    guest: Guest, opened: Opened, root: str, challenge: str, *, user: str, env: Mapping[str, str]
) -> str:
    """Raise :class:`RunnerFault` unless a release that is seen at ``root`` works. Returns what runs it."""
    manifest = opened.manifest
    together = manifest.language is Language.PYTHON
    await _end_leftovers(guest)
    check = _Trial(checking(manifest, root, env), opened, challenge)
    trials = [check.run(guest, user, CHECK_S)]
    if not together:
        launch = command(opened, root, manifest.self_test, env, CHECK_TAG)
        trials.append(_Trial(launch, opened).run(guest, user, manifest.self_test_s))
    for outcome in await asyncio.gather(*trials, return_exceptions=True):
        if isinstance(outcome, BaseException):
            raise outcome
    return check.interpreter


class _Trial:
    """One program that has to end well. With a ``challenge`` it has to answer, too, and what comes after its
    answer is the self-test."""

    def __init__(self, launch: Launch, opened: Opened, challenge: str | None = None) -> None:
        self._launch, self._opened, self._challenge = launch, opened, challenge
        self._out, self._err = bytearray(), bytearray()
        self.interpreter = ""

    async def run(self, guest: Guest, user: str, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds) as limit:
                end = await self._follow(guest, user, limit)
        except TimeoutError:
            raise self._fault("no end within its time") from None
        except RunnerFault:
            raise
        except WardianError as error:
            raise self._fault(str(error)) from error
        if end.exit_code != 0:
            raise self._fault(f"{end.status}: {_shown(self._out + self._err)[-WORDS_MAX:]}")
        if self._challenge is not None:
            self.interpreter = self._believe(self._challenge)

    async def _follow(self, guest: Guest, user: str, limit: asyncio.Timeout) -> Exit:
        process = await guest.exec(self._launch.config, user=user, env=self._launch.env)
        try:
            async for event in process.subscribe():
                if isinstance(event, Exit):
                    return event
                if event.channel == "stdout" and not self._out and self._challenge is not None:
                    self_test_s = self._opened.manifest.self_test_s  # it has answered: that begins now
                    limit.reschedule(asyncio.get_running_loop().time() + self_test_s)
                said = self._out if event.channel == "stdout" else self._err
                said += event.data
                if len(self._out) + len(self._err) > OUTPUT_BYTES_MAX:
                    raise self._fault(f"it says more than {OUTPUT_BYTES_MAX >> 10} KiB")
            raise RunnerFault("the sandbox ended meanwhile", code="runner_not_seen")
        finally:
            if process.exit is None:
                with suppress(WardianError):
                    await process.signal(signal.SIGKILL, group=True)

    def _fault(self, why: str) -> RunnerFault:
        if self._challenge is None or self._out:
            return RunnerFault(f"the release fails its self-test: {why}", code="runner_self_test_failed")
        return RunnerFault(f"the release does not load here: {why}", code="runner_invalid")

    def _believe(self, challenge: str) -> str:
        """Check the answer, which may be anything."""
        words = self._out.decode(errors="replace").split()
        wanted = [self._opened.digest, challenge]
        if self._opened.manifest.language is Language.ANY:
            words = [self._opened.digest, *words, "any"]
        if words[:2] != wanted or len(words) != 3:
            raise RunnerFault(
                "what is mounted in this sandbox is not what was released",
                code="runner_not_seen",
                hint="something inside hides or replaces /run/wardian/runner",
            )
        return _shown(words[2].encode())[:64]


def _shown(said: bytes | bytearray) -> str:
    """What a program says, as it can be shown on a terminal."""
    text = said.decode(errors="replace").strip()
    return "".join(
        each if each.isprintable() or each == "\n" else "\N{REPLACEMENT CHARACTER}" for each in text
    )


async def _end_leftovers(guest: Guest) -> None:
    """A server that died in the middle may have left one."""
    for process in list(guest.processes.values()):
        if process.config.tag == CHECK_TAG and process.exit is None:
            with suppress(WardianError):
                await process.signal(signal.SIGKILL, group=True)


__all__ = ["RunnerFault", "prove"]
