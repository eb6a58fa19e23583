"""The kernel's side of ``pipes``: ipykernel's kernels, with a pipe where they have sockets."""

from __future__ import annotations

import asyncio
import io
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from ipykernel.displayhook import ZMQDisplayHook
from ipykernel.kernelapp import IPKernelApp
from jupyter_client.jsonutil import json_clean, json_default
from jupyter_client.session import Session
from tornado.ioloop import IOLoop

from .pipes import LINE_MAX

SILENT = frozenset({"status", "execute_reply", "comm_open", "comm_msg", "comm_close", "clear_output"})
"""Messages that nobody at the other end would do anything with."""

PAUSE_S = 0.1
"""How long output is gathered, unless it is flushed or something else is to be said."""

GATHERED_MAX = 8192


class Channel:
    """The pipe that everything is said through. May be used by any thread."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._turn = threading.RLock()
        self._main_writes = False
        self._interrupted = False

    def say(self, kind: str, content: Any = None, **more: Any) -> None:
        """Say it, all of it, before anything else is said."""
        data = memoryview(_packed({"kind": kind, "content": content, **more}) + b"\n")
        main = threading.current_thread() is threading.main_thread()
        with self._turn:
            self._main_writes = main
            try:
                while data:
                    data = data[os.write(self._descriptor, data) :]
            finally:
                self._main_writes = False
        if main and self._interrupted:
            self._interrupted = False
            raise KeyboardInterrupt

    def interrupt(self, number: int, frame: Any) -> None:
        """What SIGINT does while code runs. Half a message would be the end of the conversation."""
        if self._main_writes:
            self._interrupted = True
        else:
            raise KeyboardInterrupt


def _packed(message: dict[str, Any]) -> bytes:
    """As JSON, in ASCII: text may hold halves of surrogate pairs. What is not a number becomes text."""
    try:
        return json.dumps(message, default=json_default, allow_nan=False).encode()
    except ValueError:
        return json.dumps(json_clean(message), default=json_default).encode()


class Output(io.TextIOBase):
    """``sys.stdout`` or ``sys.stderr``: what is written is gathered for a moment, and then said.

    In a process that was forked from the kernel it goes to the descriptor, line by line.
    """

    encoding = "utf-8"

    def __init__(self, name: str, descriptor: int, channel: Channel) -> None:
        self.name = name
        self._descriptor = descriptor
        self._channel: Channel | None = channel
        self._turn = threading.RLock()
        self._gathered: list[str] = []
        self._size = 0
        self._late: threading.Event | None = None
        os.register_at_fork(after_in_child=self._leave_kernel)

    def _leave_kernel(self) -> None:
        self._channel, self._turn = None, threading.RLock()
        self._gathered.clear()

    def fileno(self) -> int:
        return self._descriptor

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        with self._turn:
            self._gathered.append(text)
            self._size += len(text)
            if self._size > GATHERED_MAX or (self._channel is None and "\n" in text):
                self.flush()
            elif text and self._channel is not None:
                self._flush_later()
        return len(text)

    def flush(self) -> None:
        with self._turn:
            text = "".join(self._gathered)
            self._gathered.clear()
            self._size = 0
            if not text:
                return
            if self._channel is None:
                os.write(self._descriptor, text.encode("utf-8", "backslashreplace"))
            else:
                self._channel.say("stream", {"name": self.name, "text": text})

    def _flush_later(self) -> None:
        """The main thread may compute for hours before it writes again."""
        if self._late is None:
            self._late = threading.Event()
            threading.Thread(target=self._flush_when_late, name=f"late {self.name}", daemon=True).start()
        if not self._late.is_set():
            self._late.set()

    def _flush_when_late(self) -> None:
        assert self._late is not None
        while self._late.wait():
            time.sleep(PAUSE_S)
            self._late.clear()
            self.flush()


class PipeSession(Session):
    """Where kernels send what they publish: after what was printed before."""

    def __init__(self, channel: Channel, outputs: Sequence[Output], **traits: Any) -> None:
        super().__init__(**traits)
        self._channel = channel
        self._outputs = outputs

    def send(self, stream: Any, msg_or_type: Any, content: Any = None, *_: Any, **__: Any) -> Any:
        """Say a message, or one made of its type and its content."""
        message = msg_or_type if isinstance(msg_or_type, dict) else self.msg(msg_or_type, content)
        if message["msg_type"] not in SILENT:
            self.flush()
            self._channel.say(message["msg_type"], message["content"])
        return message

    def flush(self) -> None:
        """Say what was printed."""
        for output in self._outputs:
            output.flush()


class PipedApp(IPKernelApp):
    """IPython's application around a kernel (profile, extensions, startup files), without connections."""

    channel: Channel

    def _nothing(self, **_: Any) -> None:
        pass

    init_connection_file = init_sockets = init_heartbeat = init_poller = _nothing
    write_connection_file = log_connection_info = _nothing

    def init_io(self) -> None:
        outputs = Output("stdout", 1, self.channel), Output("stderr", 2, self.channel)
        sys.stdout, sys.stderr = outputs
        self.session = PipeSession(self.channel, outputs, parent=self)
        self.displayhook = sys.displayhook = ZMQDisplayHook(self.session, None)  # type: ignore[no-untyped-call]
        self.patch_io()  # type: ignore[no-untyped-call]

    def init_kernel(self) -> None:
        kernel_class: Any = self.kernel_class
        self.kernel = kernel_class.instance(
            parent=self,
            session=self.session,
            log=self.log,
            profile_dir=self.profile_dir,
            user_ns=self.user_ns,
            # It is only asked whether a cell runs in the main thread.
            shell_channel_thread=SimpleNamespace(parent_thread=threading.main_thread()),
        )
        self.displayhook.get_execution_count = lambda: self.kernel.execution_count


def serve(app: PipedApp, requests: int) -> None:
    """Execute what comes in until nothing more does. Tasks that cells have begun run between them."""
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    loop.run_until_complete(_serve(app, requests))


async def _serve(app: PipedApp, requests: int) -> None:
    reader = asyncio.StreamReader(limit=LINE_MAX)
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(requests, "rb")
    )
    app.kernel.io_loop = IOLoop.current()
    _let_signals_wake(asyncio.get_running_loop())
    async for line in reader:
        request = json.loads(line)
        await _execute(app, request["code"], silent=request["silent"])
        app.channel.say("idle", id=request["id"])


def _let_signals_wake(loop: asyncio.AbstractEventLoop) -> None:
    """A cell that awaits is interrupted by a callback, which the loop must wake up for."""
    wakeup, notice = os.pipe()
    for end in (wakeup, notice):
        os.set_blocking(end, False)
    signal.set_wakeup_fd(notice, warn_on_full_buffer=False)
    loop.add_reader(wakeup, os.read, wakeup, 512)


async def _execute(app: PipedApp, code: str, *, silent: bool) -> None:
    content = {"code": code, "silent": silent, "allow_stdin": False, "stop_on_error": False}
    request: dict[str, Any] = app.session.msg("execute_request", content)
    app.kernel.set_parent([], request)
    before = signal.signal(signal.SIGINT, app.channel.interrupt)
    try:
        await app.kernel.execute_request(None, [], request)
    except KeyboardInterrupt:
        app.log.warning("interrupted after the code had ended")
    finally:
        signal.signal(signal.SIGINT, before)
    app.session.flush()
