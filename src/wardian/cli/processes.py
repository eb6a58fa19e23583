"""Running a command inside a sandbox from here: streams, signals and the exit status go through."""

from __future__ import annotations

import asyncio
import base64
import os
import select
import signal
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from wardian.cli.envd import Envd
from wardian.model.errors import Kind, WardianError

CHUNK = 32 * 1024
STDIN, STDOUT, STDERR = 0, 1, 2
OWN_FAILURE, NOT_EXECUTABLE, NOT_FOUND, SIGNALED = 125, 126, 127, 128
BROKEN_PIPE = SIGNALED + signal.SIGPIPE
IMPATIENT = 3
"""This many Ctrl-C kill the command instead of interrupting it."""

SIGNAL_WORDS = {
    "hangup": signal.SIGHUP,
    "interrupt": signal.SIGINT,
    "quit": signal.SIGQUIT,
    "illegal instruction": signal.SIGILL,
    "trace/breakpoint trap": signal.SIGTRAP,
    "aborted": signal.SIGABRT,
    "bus error": signal.SIGBUS,
    "floating point exception": signal.SIGFPE,
    "killed": signal.SIGKILL,
    "user defined signal 1": signal.SIGUSR1,
    "segmentation fault": signal.SIGSEGV,
    "user defined signal 2": signal.SIGUSR2,
    "broken pipe": signal.SIGPIPE,
    "alarm clock": signal.SIGALRM,
    "terminated": signal.SIGTERM,
}
"""How the protocol spells what ended a process."""


@dataclass(frozen=True, slots=True)
class Command:
    """What to run: an argument vector, never a shell line. ``size`` (columns, rows) gives it a terminal."""

    argv: Sequence[str]
    cwd: str | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    size: tuple[int, int] | None = None
    stdin: bool = True

    @property
    def request(self) -> dict[str, Any]:
        """The body of ``process.Process/Start``."""
        process: dict[str, Any] = {"cmd": self.argv[0], "args": list(self.argv[1:]), "envs": dict(self.env)}
        if self.cwd:
            process["cwd"] = self.cwd
        request: dict[str, Any] = {"process": process, "stdin": self.stdin}
        if self.size:
            request["pty"] = pty_size(self.size)
        return request


def pty_size(size: tuple[int, int]) -> dict[str, Any]:
    """A terminal's size as the protocol wants it."""
    return {"size": {"cols": size[0], "rows": size[1]}}


def exit_status(end: Mapping[str, Any]) -> int:
    """The status a shell would report for an ``end`` event: the code, or 128 + the signal's number."""
    status = str(end.get("status", "")).removesuffix(" (core dumped)")
    if status.startswith("signal: "):
        words = status.removeprefix("signal: ")
        number = words.removeprefix("signal ")
        return SIGNALED + (int(number) if number.isdigit() else int(SIGNAL_WORDS.get(words, 0)))
    return int(end.get("exitCode", 0)) & 0xFF


class BytesFrom:
    """Bytes of a file descriptor of any kind, read by a thread of its own that nobody waits for at the end.

    It reads ahead by one chunk only, so what the command does not consume stays where it is.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._loop = asyncio.get_running_loop()
        self._chunks: asyncio.Queue[bytes] = asyncio.Queue()
        self._wanted = threading.Semaphore(0)
        threading.Thread(target=self._read, daemon=True, name="stdin").start()

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        self._wanted.release()
        chunk = await self._chunks.get()
        if not chunk:
            raise StopAsyncIteration
        return chunk

    def _read(self) -> None:
        while True:
            self._wanted.acquire()
            try:
                chunk = os.read(self._fd, CHUNK)
            except OSError:
                chunk = b""
            with suppress(RuntimeError):  # the loop is gone: so is the command
                self._loop.call_soon_threadsafe(self._chunks.put_nowait, chunk)
            if not chunk:
                return


async def execute(envd: Envd, command: Command, write: Callable[[str, bytes], None] | None = None) -> int:
    """Run ``command`` with our standard streams as its own and return its exit status.

    Its output goes to ``write`` (channel, bytes) instead, if that is given.

    Ctrl-C, SIGTERM and SIGHUP go to the command's process group; the third Ctrl-C kills it. If nobody
    takes its output any more, it is ended too. Raises WardianError when it cannot start or the link breaks.
    """
    async with envd.follow("process.Process/Start", command.request) as events:
        pid = (await anext(events))["event"]["start"]["pid"]
        tasks: set[asyncio.Task[None]] = set()

        def spawn(work: Any) -> None:
            tasks.add(asyncio.get_running_loop().create_task(work))

        if command.stdin:
            spawn(pass_input(envd, pid, BytesFrom(STDIN)))
        undo = forward_signals(lambda signo: spawn(send_signal(envd, pid, signo)))
        try:
            async for event in events:
                if data := event["event"].get("data"):
                    for channel, text in data.items():
                        (write or write_output)(channel, base64.b64decode(text))
                elif "end" in event["event"]:
                    return exit_status(event["event"]["end"])
        except BrokenPipeError:
            await send_signal(envd, pid, signal.SIGPIPE)
            with suppress(OSError):  # or Python would complain about unwritable output once more as it ends
                os.dup2(os.open(os.devnull, os.O_WRONLY), STDOUT)
            return BROKEN_PIPE
        finally:
            undo()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
    raise WardianError("the command's stream ended without its end", code="stream_broken")


async def capture(envd: Envd, argv: Sequence[str], *, user: str | None = None) -> tuple[int, Kept]:
    """Run a short helper inside; its status and output. For what is small."""
    kept = Kept()
    async with envd.follow("process.Process/Start", Command(argv, stdin=False).request, user=user) as events:
        async for event in events:
            for channel, text in (event["event"].get("data") or {}).items():
                kept.write(channel, base64.b64decode(text))
            if "end" in event["event"]:
                return exit_status(event["event"]["end"]), kept
    raise WardianError("the command's stream ended without its end", code="stream_broken")


async def pass_input(envd: Envd, pid: int, chunks: AsyncIterator[bytes]) -> None:
    """Everything from ``chunks`` to the command's standard input, then its end."""
    try:
        await envd.feed(pid, "stdin", chunks)
        await envd.call("process.Process/CloseStdin", {"process": {"pid": pid}})
    except WardianError as error:
        if error.kind is not Kind.NOT_FOUND:  # it ended without reading everything, as commands may
            raise


async def send_signal(envd: Envd, pid: int, signo: int) -> None:
    """Send any signal to a command and all its group; the protocol itself knows two signals only."""
    with suppress(WardianError):  # it may just have ended
        await capture(envd, ["/bin/sh", "-c", f"kill -{signo} -{pid}"], user="root")


def forward_signals(send: Callable[[int], None]) -> Callable[[], None]:
    """Send what is sent to us on to the command; the answer undoes it."""
    loop = asyncio.get_running_loop()
    interrupts = 0

    def interrupt() -> None:
        nonlocal interrupts
        interrupts += 1
        send(signal.SIGINT if interrupts < IMPATIENT else signal.SIGKILL)

    loop.add_signal_handler(signal.SIGINT, interrupt)
    for signo in (signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(signo, send, signo)

    def undo() -> None:
        for signo in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.remove_signal_handler(signo)

    return undo


class Kept:
    """Output that is kept instead of being shown."""

    def __init__(self) -> None:
        self._bytes: dict[str, bytearray] = {"stdout": bytearray(), "stderr": bytearray()}

    def write(self, channel: str, data: bytes) -> None:
        """Add to what was written to ``channel``: stdout or stderr."""
        self._bytes[channel] += data

    def text(self, channel: str) -> str:
        """All of it, with what is no UTF-8 replaced."""
        return self._bytes[channel].decode(errors="replace")


def write_output(channel: str, data: bytes) -> None:
    """To the stream of ours that ``channel`` (stdout, stderr or pty) stands for."""
    write_all(STDERR if channel == "stderr" else STDOUT, data)


def write_all(fd: int, data: bytes) -> None:
    """All of ``data`` to ``fd``, however often the kernel takes only a part."""
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:  # whoever started us shares a non-blocking file with us
            select.select([], [fd], [])


def start_failure(error: WardianError) -> int:
    """The exit code for a command that could not be run, as shells have it; 125 for failures of our own."""
    message = error.message.lower()
    if error.kind in (Kind.INVALID, Kind.NOT_FOUND) and "cwd" not in message:
        if "no such file" in message or "not found" in message:
            return NOT_FOUND
        if "permission denied" in message:
            return NOT_EXECUTABLE
    return OWN_FAILURE
