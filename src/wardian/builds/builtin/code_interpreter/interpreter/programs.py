"""Kernels of our own that are programs: ``kernel.js`` on node, ``kernel.java`` on a JDK."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

from .pipes import Ends
from .processes import KernelProcess, watch

HERE = Path(__file__).parent


async def node(language: str, cwd: str, env: Mapping[str, str], ends: Ends) -> KernelProcess:
    """Start JavaScript, or TypeScript."""
    command = (
        "node",
        "--experimental-vm-modules",  # or cells could not import
        "--no-warnings",
        str(HERE / "kernel.js"),
        language,
        str(ends.requests),
        str(ends.messages),
    )
    return watch(
        await asyncio.create_subprocess_exec(
            *command,
            cwd=cwd,
            env=env,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=ends.stdout,
            stderr=ends.stderr,
            pass_fds=(ends.requests, ends.messages),
            start_new_session=True,
        )
    )


async def java(cwd: str, env: Mapping[str, str], ends: Ends) -> KernelProcess:
    """Start Java, which can use no descriptors but the first three."""
    command = (
        "java",
        "-XX:TieredStopAtLevel=1",  # half the time to start, and cells are short
        "--add-opens=java.base/java.lang=ALL-UNNAMED",  # or variables could not be set
        str(HERE / "kernel.java"),
    )
    return watch(
        await asyncio.create_subprocess_exec(
            *command,
            cwd=cwd,
            env=env,
            stdin=ends.requests,
            stdout=ends.messages,
            stderr=ends.stderr,
            start_new_session=True,
        )
    )
