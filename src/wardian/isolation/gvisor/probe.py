"""Boot a real machine and exchange a byte with it, or say what is missing and how to get it."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from wardian.isolation.gvisor.launch import Tools
from wardian.isolation.gvisor.substrate import SubstrateReader
from wardian.isolation.host.probing import ProbeFailed, boot_and_ask, empty_root, unusable
from wardian.isolation.port import Capabilities, Driver
from wardian.model.errors import WardianError


async def probe(driver: Driver, substrates: SubstrateReader, tools: Tools, scratch: Path) -> Capabilities:
    """The outcome of booting the echo agent with ``driver``; files go to ``scratch``. Never raises."""
    try:
        _check_host(tools)
        runsc = await substrates.read()
        boot_ms = await boot_and_ask(driver, await asyncio.to_thread(empty_root, scratch))
    except (WardianError, OSError, TimeoutError) as error:
        return unusable(driver, error, _remedy(str(error)))
    return Capabilities(
        driver=driver.name,
        level=driver.level,
        usable=True,
        version=runsc.substrate.version,
        build=runsc.substrate.build,
        cpu_features=runsc.substrate.cpu_features,
        details={"profile": runsc.profile.name, "boot_ms": boot_ms},
    )


def _check_host(tools: Tools) -> None:
    if os.geteuid() != 0:
        raise ProbeFailed("machines are made by root", hint="run the server as root")
    for path in (tools.launcher, tools.enter, tools.echo):
        if not path.exists():
            raise ProbeFailed(f"{path} is missing", hint="build it: make -C launcher")
    if not tools.agent.exists():
        raise ProbeFailed(f"the guest agent {tools.agent} is missing", hint="build it: make -C guest")


def _remedy(reason: str) -> str:
    if "loop" in reason:
        return "load the loop module (modprobe loop), or choose disks in memory"
    if "cgroup" in reason:
        return "mount the memory, cpu and pids control groups"
    if "unshare" in reason or "mount" in reason:
        return "allow namespaces and mounts: inside a container, run it privileged"
    return "see the reason"


__all__ = ["probe"]
