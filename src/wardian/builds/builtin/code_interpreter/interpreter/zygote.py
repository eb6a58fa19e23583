"""A process that has everything imported and warm, and is forked for every new Python or bash kernel.

Importing IPython, pandas and matplotlib takes seconds in a sandbox; a fork takes milliseconds and shares the
pages. Requests and answers are JSON lines: ``{"kernel", "connection_file", "cwd", "env"}`` is answered
``{"pid"}``, and ``{"exited": pid}`` says that one is gone. At the end of its input the zygote exits.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import selectors
import signal
import sys
from collections.abc import Mapping
from typing import Any, NoReturn

from .processes import KernelProcess

REQUESTS = 0
"""The descriptor that requests come in by: standard input."""


class Zygote:
    """The server's side: starts the zygote with its first kernel, and again after it died."""

    def __init__(self) -> None:
        self._process: asyncio.subprocess.Process | None = None
        self._turn = asyncio.Lock()
        self._pids: asyncio.Queue[int | None] = asyncio.Queue()
        self._kernels: dict[int, KernelProcess] = {}
        self._reader: asyncio.Task[None] | None = None

    async def fork(
        self, kernel: str, connection_file: str, cwd: str, env: Mapping[str, str]
    ) -> KernelProcess:
        """A new kernel process. OSError when it cannot be made."""
        async with self._turn:
            process = await self._running()
            assert process.stdin is not None
            request = {"kernel": kernel, "connection_file": connection_file, "cwd": cwd, "env": dict(env)}
            process.stdin.write(json.dumps(request).encode() + b"\n")
            pid = await self._pids.get()
            if pid is None:
                raise ChildProcessError("the process that kernels are forked from died")
            return self._kernels[pid]

    async def _running(self) -> asyncio.subprocess.Process:
        if self._process is None or self._process.returncode is not None:
            self._pids = asyncio.Queue()
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                __name__,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                start_new_session=True,
            )
            self._reader = asyncio.create_task(self._read(self._process, self._pids), name="zygote")
        return self._process

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
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
        if self._reader is not None:
            await asyncio.wait({self._reader})


# --- the zygote itself


def main() -> NoReturn:
    """Warm up, then fork on request until the end of input."""
    os.environ["MPLBACKEND"] = "module://matplotlib_inline.backend_inline"
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print while they are imported is no answer
    from . import inside

    _import_kernels()
    inside.warm()
    wakeup, notice = os.pipe()
    for end in (wakeup, notice):
        os.set_blocking(end, False)
    signal.set_wakeup_fd(notice)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    selector = selectors.DefaultSelector()
    selector.register(REQUESTS, selectors.EVENT_READ)
    selector.register(wakeup, selectors.EVENT_READ)
    rest = b""
    while True:
        for key, _ in selector.select():
            if key.fd == wakeup:
                os.read(wakeup, 512)
                _report_ends(answers)
                continue
            if not (chunk := os.read(REQUESTS, 65536)):
                os._exit(0)
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                _answer(json.loads(line), answers, {wakeup, notice})


def _import_kernels() -> None:
    import ipykernel.kernelapp  # noqa: F401
    import matplotlib_inline.backend_inline  # noqa: F401


def _answer(request: dict[str, Any], answers: Any, own: set[int]) -> None:
    pid = os.fork()
    if pid:
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
        os.dup2(null, 0)
        os.environ.clear()
        os.environ.update(request["env"])
        os.chdir(request["cwd"])
        _become_kernel(request["kernel"], request["connection_file"])
    finally:
        os._exit(1)


def _become_kernel(kernel: str, connection_file: str) -> None:
    from ipykernel.kernelapp import IPKernelApp

    from . import inside

    arguments = ["-f", connection_file, "--HistoryManager.enabled=False"]
    application: Any = IPKernelApp.instance()
    if kernel == "bash":
        from bash_kernel.kernel import BashKernel

        application.kernel_class = BashKernel
    sys.path[:] = ["", *(entry for entry in sys.path if entry)]
    inside.reseed()
    application.initialize(arguments)
    if kernel == "python":
        inside.install(application.shell)
    application.start()
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
