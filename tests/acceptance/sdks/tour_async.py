"""Drives the asynchronous face of one official Python SDK. Run as ``python tour_async.py <module>``.

Ends with one line of JSON, as ``tour.py`` does, which goes further: both faces share what they send.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import sys
from typing import Any


async def drive(module_name: str) -> dict[str, str]:
    """A life of a sandbox, with the module's ``AsyncSandbox``."""
    module = importlib.import_module(module_name)
    cls: Any = module.AsyncSandbox
    sandbox = await cls.create(timeout=120, metadata={"sdk": f"{module_name} async"})
    try:
        await _commands(sandbox)
        await _files(sandbox)
        again = await _pause_and_resume(cls, sandbox)
        await _snapshot(cls, again)
    finally:
        killed = await cls.kill(sandbox.sandbox_id)
    assert killed is True
    assert await sandbox.is_running() is False
    return dict.fromkeys(
        ("create", "commands", "files", "watch", "pause and resume", "snapshot", "kill"), "ok"
    )


async def _commands(sandbox: Any) -> None:
    runs = [sandbox.commands.run(f"echo {n}") for n in range(8)]
    assert [done.stdout for done in await asyncio.gather(*runs)] == [f"{n}\n" for n in range(8)]
    handle = await sandbox.commands.run("sleep 600", background=True)
    assert await handle.kill() is True


async def _files(sandbox: Any) -> None:
    await sandbox.files.write("notes/deep.txt", "42")
    assert await sandbox.files.read("notes/deep.txt") == "42"
    told: asyncio.Queue[Any] = asyncio.Queue()
    watch = await sandbox.files.watch_dir("notes", on_event=told.put_nowait)
    await sandbox.files.write("notes/new.txt", "1")
    assert (await asyncio.wait_for(told.get(), 10)).name == "new.txt"
    await watch.stop()


async def _pause_and_resume(cls: Any, sandbox: Any) -> Any:
    pause = sandbox.pause if hasattr(sandbox, "pause") else sandbox.beta_pause
    await pause()
    assert await sandbox.is_running() is False
    again = await cls.connect(sandbox.sandbox_id)
    assert await again.files.read("notes/deep.txt") == "42"
    return again


async def _snapshot(cls: Any, sandbox: Any) -> None:
    taken = await sandbox.create_snapshot()
    made = await cls.create(taken.snapshot_id, timeout=60)
    assert await made.files.read("notes/deep.txt") == "42"
    assert await made.kill() is True
    assert await cls.delete_snapshot(taken.snapshot_id) is True


if __name__ == "__main__":
    sys.stdout.write(json.dumps(asyncio.run(drive(sys.argv[1]))) + "\n")
