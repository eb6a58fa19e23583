"""The interpreter's own kernels, as processes of this host: what is said over their pipes."""

from __future__ import annotations

import asyncio
import shutil
import sys
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from wardian.builds.builtin import directory
from wardian.builds.builtin.code_interpreter.interpreter import programs
from wardian.builds.builtin.code_interpreter.interpreter.kernels import KernelDied, Message
from wardian.builds.builtin.code_interpreter.interpreter.pipes import Ends, PipedKernel
from wardian.builds.builtin.code_interpreter.interpreter.processes import KernelProcess, watch

PYTHON = """
from interpreter.pipes import Ends
from interpreter.zygote import become_kernel
become_kernel("python", Ends({0}, {1}, 1, 2))
"""


async def python(home: Path, ends: Ends) -> KernelProcess:
    """A Python kernel that is started, not forked."""
    env = {"PYTHONPATH": str(directory("code-interpreter-v1")), "HOME": str(home), "PATH": "/usr/bin:/bin"}
    return watch(
        await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            PYTHON.format(ends.requests, ends.messages),
            cwd=home,
            env=env,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=ends.stdout,
            stderr=ends.stderr,
            pass_fds=(ends.requests, ends.messages),
            start_new_session=True,
        )
    )


@pytest.fixture(scope="module")
async def kernel(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[PipedKernel]:
    started = await PipedKernel.start(partial(python, tmp_path_factory.mktemp("python")))
    yield started
    await started.stop()


async def run(kernel: PipedKernel, code: str, **options: Any) -> list[Message]:
    return [said async for said in kernel.execute(code, **options)]


async def printed(kernel: PipedKernel, code: str) -> str:
    said = await run(kernel, code)
    return "".join(each.content["text"] for each in said if each.kind == "stream")


async def result(kernel: PipedKernel, code: str) -> str | None:
    for said in await run(kernel, code):
        if said.kind == "execute_result":
            return str(said.content["data"]["text/plain"])
    return None


async def test_a_cell_is_told_in_the_order_in_which_it_happened(kernel: PipedKernel) -> None:
    said = await run(kernel, "print('a'); print('b'); display(1); print('c'); 2")
    assert [each.kind for each in said] == [
        "execute_input",
        "stream",
        "display_data",
        "stream",
        "execute_result",
    ]
    assert (said[1].content["text"], said[3].content["text"]) == ("a\nb\n", "c\n")
    (_, error) = await run(kernel, "1 / 0")
    assert (error.kind, error.content["ename"]) == ("error", "ZeroDivisionError")
    assert await run(kernel, "3", silent=True) == []


async def test_programs_and_forks_print_too(kernel: PipedKernel) -> None:
    code = "import os; os.system('echo program; echo error >&2');"
    assert await printed(kernel, code) == "program\nerror\n"
    fork = "if os.fork() == 0:\n    print('child'); os._exit(0)\nos.wait();"
    assert await printed(kernel, fork) == "child\n"


async def test_whatever_can_be_printed_arrives(kernel: PipedKernel) -> None:
    assert await printed(kernel, r"print('half a pair: \ud800')") == "half a pair: \ud800\n"
    (_, shown) = await run(kernel, "display({'application/json': {'a': float('nan')}}, raw=True)")
    assert shown.content["data"]["application/json"] == {"a": "nan"}
    assert len(await printed(kernel, "print('x' * 5_000_000)")) == 5_000_001


async def test_what_a_thread_prints_is_told_while_a_cell_runs_and_else_dropped(kernel: PipedKernel) -> None:
    code = "import threading, time\nthreading.Thread(target=lambda: (time.sleep(.1), print('late'))).start()"
    assert await printed(kernel, code + "\ntime.sleep(.5)") == "late\n"
    await run(kernel, code)
    await run(kernel, "time.sleep(.5)", silent=True)
    assert await printed(kernel, "print('now')") == "now\n"


@pytest.mark.parametrize(
    ("code", "name"),
    [
        ("import time\nprint('begun', flush=True)\nwhile True: time.sleep(0.01)", "KeyboardInterrupt"),
        ("import asyncio\nprint('begun', flush=True)\nawait asyncio.sleep(600)", "CancelledError"),
        ("print('begun', flush=True)\nwhile True: print('y' * 1000)", "KeyboardInterrupt"),
    ],
)
async def test_a_cell_is_interrupted(kernel: PipedKernel, code: str, name: str) -> None:
    last: Message | None = None
    async for said in kernel.execute(code):
        if said.kind == "stream" and last is not None and last.kind == "execute_input":
            kernel.interrupt()
        last = said
    assert last is not None
    assert (last.kind, last.content["ename"]) == ("error", name)
    assert await result(kernel, "1 + 1") == "2"


async def test_tasks_that_a_cell_began_run_between_cells(kernel: PipedKernel) -> None:
    await run(kernel, "import asyncio\ndone = []\nasync def later(): done.append(await asyncio.sleep(0, 7))")
    await run(kernel, "task = asyncio.create_task(later())")
    assert await result(kernel, "await task; done") == "[7]"


async def test_a_kernel_that_ends_says_so(tmp_path: Path) -> None:
    kernel = await PipedKernel.start(partial(python, tmp_path))
    with pytest.raises(KernelDied):
        await run(kernel, "print('last words', flush=True); import os; os._exit(1)")
    assert not kernel.alive
    await kernel.stop()


@pytest.fixture(scope="module")
async def java(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[PipedKernel]:
    if shutil.which("java") is None:
        pytest.skip("no JDK is installed here")
    home = str(tmp_path_factory.mktemp("java"))
    started = await PipedKernel.start(partial(programs.java, home, {"PATH": "/usr/bin:/bin", "HOME": home}))
    yield started
    await started.stop()


async def test_java(java: PipedKernel) -> None:
    assert await result(java, "int x = 20;\nx * 2 + 2") == "42"
    assert await result(java, "int x = 20;") is None
    assert await printed(java, 'System.out.println("½ " + x);') == "½ 20\n"
    (_, error) = await run(java, "x / 0")
    assert error.content["ename"] == "java.lang.ArithmeticException"
    (_, error) = await run(java, "nothing.at(all)")
    assert error.content["ename"] == "CompilationError"
    await run(java, '//env {"GIVEN": "it\'s \\"so\\"", "PATH": null}', silent=True)
    assert await result(java, 'System.getenv("GIVEN") + System.getenv("PATH")') == r'''"it's \"so\"null"'''
    code = 'new ProcessBuilder("/bin/echo", "raw").inheritIO().start().waitFor();'
    assert await printed(java, code) == "raw\n"


async def test_java_is_interrupted(java: PipedKernel) -> None:
    code = 'System.out.println("begun"); System.out.flush(); while (true) Thread.sleep(10);'
    async for said in java.execute(code):
        if said.kind == "stream":
            java.interrupt()
    assert (said.kind, said.content["ename"]) == ("error", "KeyboardInterrupt")
    assert await result(java, "1 + 1") == "2"
