"""Boot a real machine and exchange a byte with it, or say what is missing and how to get it."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from wardian.isolation.gvisor.launch import Tools
from wardian.isolation.gvisor.substrate import SubstrateReader
from wardian.isolation.port import Capabilities, Driver, MachineSpec, RootImage
from wardian.model.errors import Kind, WardianError
from wardian.model.resources import MEMORY_MIB_MIN, Resources

ANSWER_TIMEOUT_S = 10.0
_PROBE_RESOURCES = Resources(cpu_count=1, memory_mib=MEMORY_MIB_MIN, disk_mib=64, processes_max=64)


class ProbeFailed(WardianError):
    """The host cannot run machines."""

    kind, code = Kind.UNAVAILABLE, "probe_failed"


async def probe(driver: Driver, substrates: SubstrateReader, tools: Tools, scratch: Path) -> Capabilities:
    """The outcome of booting the echo agent with ``driver``; files go to ``scratch``. Never raises."""
    name, level = driver.name, driver.level
    try:
        _check_host(tools)
        runsc = await substrates.read()
        boot_ms = await _boot_and_ask(driver, await asyncio.to_thread(_empty_root, scratch))
    except (WardianError, OSError, TimeoutError) as error:
        hint = error.hint if isinstance(error, WardianError) else None
        reason = error.message if isinstance(error, WardianError) else str(error) or type(error).__name__
        return Capabilities(name, level, usable=False, reason=reason, remedy=hint or _remedy(reason))
    return Capabilities(
        driver=name,
        level=level,
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


def _empty_root(scratch: Path) -> RootImage:
    image = scratch / "empty.erofs"
    if not image.exists():
        scratch.mkdir(parents=True, exist_ok=True)
        mkfs = shutil.which("mkfs.erofs")
        if mkfs is None:
            raise ProbeFailed("mkfs.erofs is missing", hint="apt-get install erofs-utils")
        with tempfile.TemporaryDirectory(dir=scratch) as work:
            draft, tree = Path(work, "draft"), Path(work, "tree")
            tree.mkdir()
            # Inline data would be an EROFS layout that gVisor does not know: every exec would fail.
            command = [mkfs, "-Enoinline_data", "--quiet", str(draft), str(tree)]
            made = subprocess.run(command, capture_output=True, check=False)
            if made.returncode:
                raise ProbeFailed(f"mkfs.erofs failed: {made.stderr.decode(errors='replace').strip()}")
            draft.rename(image)
    return RootImage(path=image, digest="sha256:" + "0" * 64)


async def _boot_and_ask(driver: Driver, root: RootImage) -> float:
    begin = time.monotonic()
    prepared = await driver.prepare(MachineSpec(root=root, resources=_PROBE_RESOURCES))
    try:
        machine = await prepared.start()
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            await loop.sock_sendall(machine.link, b"?")
            answer = await loop.sock_recv(machine.link, 16)
        if answer != b"?":
            raise ProbeFailed("a machine booted, but its link does not work")
        return round((time.monotonic() - begin) * 1000, 1)
    finally:
        await prepared.discard()


__all__ = ["ProbeFailed", "probe"]
