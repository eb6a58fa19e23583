"""A process that has everything imported and warm, and is forked for every new Python or bash kernel.

Importing IPython, pandas and matplotlib takes seconds in a sandbox; a fork takes milliseconds and shares the
pages. Requests are JSON lines, ``{"kernel", "cwd", "env"}``, that come over a socket with the kernel's ends
of its pipes. Each is answered ``{"pid"}``; ``{"exited": pid}`` says that one is gone. At the end of its input
the zygote exits.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import selectors
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from .pipes import Ends
from .processes import KernelProcess


class Zygote:
    """The server's side: starts the zygote with its first kernel, and again after it died."""

    def __init__(self) -> None:
        self._process: asyncio.subprocess.Process | None = None
        self._requests: socket.socket | None = None
        self._turn = asyncio.Lock()
        self._pids: asyncio.Queue[int | None] = asyncio.Queue()
        self._kernels: dict[int, KernelProcess] = {}
        self._reader: asyncio.Task[None] | None = None

    async def fork(self, kernel: str, cwd: str, env: Mapping[str, str], ends: Ends) -> KernelProcess:
        """A new kernel process on its ends of the pipes. OSError when it cannot be made."""
        async with self._turn:
            requests = await self._running()
            line = json.dumps({"kernel": kernel, "cwd": cwd, "env": dict(env)}).encode() + b"\n"
            socket.send_fds(requests, [line[:1]], list(ends))
            await asyncio.get_running_loop().sock_sendall(requests, line[1:])
            pid = await self._pids.get()
            if pid is None:
                raise ChildProcessError("the process that kernels are forked from died")
            return self._kernels[pid]

    async def _running(self) -> socket.socket:
        """The socket of a zygote that lives."""
        if self._process is None or self._process.returncode is not None or self._requests is None:
            self._hang_up()
            self._pids = asyncio.Queue()
            self._requests, theirs = socket.socketpair()
            self._requests.setblocking(False)
            with theirs:
                self._process = await asyncio.create_subprocess_exec(
                    sys.executable,
                    "-m",
                    __name__,
                    stdin=theirs.fileno(),
                    stdout=asyncio.subprocess.PIPE,
                    start_new_session=True,
                )
            self._reader = asyncio.create_task(self._read(self._process, self._pids), name="zygote")
        return self._requests

    def _hang_up(self) -> None:
        if self._requests is not None:
            self._requests.close()
            self._requests = None

    async def _read(self, process: asyncio.subprocess.Process, pids: asyncio.Queue[int | None]) -> None:
        assert process.stdout is not None
        kernels: dict[int, KernelProcess] = {}
        async for line in process.stdout:
            answer = json.loads(line)
            if "pid" in answer:
                pid, exited = answer["pid"], asyncio.get_running_loop().create_future()
                kernels[pid] = self._kernels[pid] = KernelProcess(pid, exited)
                pids.put_nowait(pid)
            elif "exited" in answer and (gone := kernels.pop(answer["exited"], None)) is not None:
                self._forget(gone)
        await process.wait()
        for orphan in kernels.values():  # nobody would tell us of their ends
            with contextlib.suppress(ProcessLookupError):
                os.killpg(orphan.pid, signal.SIGKILL)
            self._forget(orphan)
        pids.put_nowait(None)

    def _forget(self, kernel: KernelProcess) -> None:
        self._kernels.pop(kernel.pid, None)
        kernel.exited.set_result(None)

    async def stop(self) -> None:
        """End the zygote and every kernel."""
        self._hang_up()
        if self._reader is not None:
            await asyncio.wait({self._reader})


# --- the zygote itself


def main() -> NoReturn:
    """Warm up, then fork on request until the end of input."""
    os.environ["MPLBACKEND"] = "module://matplotlib_inline.backend_inline"
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print while they are imported is no answer
    from . import inside, piped  # noqa: F401

    inside.warm()
    gc.collect()
    gc.freeze()  # or each collection in a fork would write to, and so copy, the pages of everything there is
    requests = socket.socket(fileno=0)
    wakeup, notice = os.pipe()
    for end in (wakeup, notice):
        os.set_blocking(end, False)
    signal.set_wakeup_fd(notice)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    selector = selectors.DefaultSelector()
    selector.register(requests, selectors.EVENT_READ)
    selector.register(wakeup, selectors.EVENT_READ)
    while True:
        for key, _ in selector.select():
            if key.fd == wakeup:
                os.read(wakeup, 512)
                _report_ends(answers)
                continue
            request, descriptors = _request(requests)
            _answer(request, Ends(*descriptors), answers, {wakeup, notice, selector.fileno()})


def _request(requests: socket.socket) -> tuple[dict[str, Any], Sequence[int]]:
    """The next request, and the descriptors that came with it. Exits at the end."""
    data, descriptors, _, _ = socket.recv_fds(requests, 65536, 4)
    while not data.endswith(b"\n"):
        if not (chunk := requests.recv(65536)):
            os._exit(0)
        data += chunk
    return json.loads(data), descriptors


def _answer(request: dict[str, Any], ends: Ends, answers: Any, own: set[int]) -> None:
    pid = os.fork()
    if pid:
        ends.close()
        answers.write(json.dumps({"pid": pid}) + "\n")
        return
    try:
        os.setsid()
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for descriptor in own:
            os.close(descriptor)
        answers.close()
        null = os.open(os.devnull, os.O_RDONLY)
        for descriptor in (ends.requests, ends.messages):
            os.set_inheritable(descriptor, False)
        for source, number in ((null, 0), (ends.stdout, 1), (ends.stderr, 2)):
            os.dup2(source, number)
            os.close(source)
        os.environ.clear()
        os.environ.update(request["env"])
        os.chdir(request["cwd"])
        become_kernel(request["kernel"], ends)
    finally:
        os._exit(1)


def become_kernel(kernel: str, ends: Ends) -> NoReturn:
    """Be a ``python`` or ``bash`` kernel until the end of its requests."""
    from . import inside
    from .piped import Channel, PipedApp, serve

    application: Any = PipedApp.instance()
    application.channel = Channel(ends.messages)
    if kernel == "bash":
        from bash_kernel.kernel import BashKernel

        application.kernel_class = BashKernel
    sys.path[:] = ["", *(entry for entry in sys.path if entry)]
    inside.reseed()
    application.initialize(["--HistoryManager.enabled=False", "--Kernel._execute_sleep=0"])
    if kernel == "python":
        inside.install(application.shell)
    gc.collect()
    gc.freeze()
    serve(application, ends.requests)
    os._exit(0)


def _report_ends(answers: Any) -> None:
    while True:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not pid:
            return
        answers.write(json.dumps({"exited": pid}) + "\n")


if __name__ == "__main__":
    main()
