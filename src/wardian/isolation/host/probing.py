"""Booting a machine with a driver, to see whether that works here."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from wardian.isolation.port import Capabilities, Driver, MachineSpec, RootImage
from wardian.model.errors import Kind, WardianError
from wardian.model.resources import MEMORY_MIB_MIN, Resources

ANSWER_TIMEOUT_S = 10.0
_PROBE_RESOURCES = Resources(cpu_count=1, memory_mib=MEMORY_MIB_MIN, disk_mib=64, processes_max=64)


class ProbeFailed(WardianError):
    """The host cannot run machines."""

    kind, code = Kind.UNAVAILABLE, "probe_failed"


def empty_root(scratch: Path) -> RootImage:
    """A root image with nothing in it, kept in ``scratch``."""
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


async def boot_and_ask(driver: Driver, root: RootImage, *, patience_s: float = ANSWER_TIMEOUT_S) -> float:
    """Boot a machine whose agent echoes, and exchange a byte with it; how many milliseconds that took."""
    begin = time.monotonic()
    prepared = await driver.prepare(MachineSpec(root=root, resources=_PROBE_RESOURCES))
    try:
        machine = await prepared.start()
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(patience_s):
            await loop.sock_sendall(machine.link, b"?")
            answer = await loop.sock_recv(machine.link, 16)
        if answer != b"?":
            raise ProbeFailed("a machine booted, but its link does not work")
        return round((time.monotonic() - begin) * 1000, 1)
    finally:
        await prepared.discard()


def unusable(driver: Driver, error: Exception, remedy: str = "see the reason") -> Capabilities:
    """What a driver is capable of after its probe failed; ``remedy`` if the error has no hint."""
    hint = error.hint if isinstance(error, WardianError) else None
    reason = error.message if isinstance(error, WardianError) else str(error) or type(error).__name__
    return Capabilities(driver.name, driver.level, usable=False, reason=reason, remedy=hint or remedy)


__all__ = ["ProbeFailed", "boot_and_ask", "empty_root", "unusable"]
