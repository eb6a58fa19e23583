"""Boot a real machine under each accelerator, the faster first, and remember until the host restarts."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

from wardian.isolation.host.probing import ProbeFailed, boot_and_ask, empty_root
from wardian.isolation.host.substrate import file_identity
from wardian.isolation.port import Driver
from wardian.isolation.qemu.command import Accelerator
from wardian.isolation.qemu.tools import Tools
from wardian.model.errors import WardianError

KVM_TIMEOUT_S = 5.0
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_KVM = Path("/dev/kvm")


@dataclass(frozen=True, slots=True)
class Choice:
    """What runs machines here, and why nothing faster does. ``boot_ms``: how long one took to boot."""

    accelerator: Accelerator
    reason: str = ""
    boot_ms: float = 0


async def try_kvm(driver: Driver, scratch: Path) -> Choice:
    """KVM if a stock kernel really boots under it: the device may be there and yet not do."""
    if not os.access(_KVM, os.F_OK):
        return Choice(Accelerator.TCG, "this host has no /dev/kvm")
    if not os.access(_KVM, os.R_OK | os.W_OK):
        return Choice(Accelerator.TCG, "/dev/kvm may not be used by us")
    try:
        async with asyncio.timeout(KVM_TIMEOUT_S):
            boot_ms = await boot_and_ask(driver, await asyncio.to_thread(empty_root, scratch))
    except TimeoutError:
        return Choice(Accelerator.TCG, f"a kernel did not boot under /dev/kvm within {KVM_TIMEOUT_S:g} s")
    except (WardianError, OSError) as error:
        what = error.message if isinstance(error, WardianError) else str(error)
        return Choice(Accelerator.TCG, f"a kernel did not boot under /dev/kvm: {what.strip()[:300]}")
    return Choice(Accelerator.KVM, boot_ms=boot_ms)


def choice_file(directory: Path, tools: Tools) -> Path:
    """Where the choice for these programs is kept. (Servers of several releases may share a directory.)"""
    return directory / f"accelerator-{hashlib.sha256(_mark(tools).encode()).hexdigest()[:12]}.json"


def remembered(file: Path, tools: Tools) -> Choice | None:
    """The choice made since the host was started, with these programs."""
    try:
        told = json.loads(file.read_text())
        if told["boot"] == _BOOT_ID.read_text().strip() and told["qemu"] == _mark(tools):
            return Choice(Accelerator(told["accelerator"]), str(told["reason"]), float(told["boot_ms"]))
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return None


def remember(file: Path, tools: Tools, choice: Choice) -> None:
    """Keep the choice in ``file``."""
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_suffix(f".{os.getpid()}.draft")
    told = {
        "boot": _BOOT_ID.read_text().strip(),
        "qemu": _mark(tools),
        "accelerator": str(choice.accelerator),
        "reason": choice.reason,
        "boot_ms": choice.boot_ms,
    }
    draft.write_text(json.dumps(told))
    draft.rename(file)


def _mark(tools: Tools) -> str:
    files = (tools.qemu, tools.launcher, tools.init, tools.agent, tools.kernel or tools.kernels)
    return f"{[file_identity(path) for path in files]} {tools.kernel_arguments}"


def check_host(tools: Tools) -> None:
    """Raise :class:`ProbeFailed` if something is missing that no boot is needed to see."""
    if os.geteuid() != 0:
        raise ProbeFailed("machines are made by root", hint="run the server as root")
    for path in (tools.launcher, tools.ram):
        if not path.exists():
            raise ProbeFailed(f"{path} is missing", hint="build it: make -C launcher")


__all__ = ["Choice", "check_host", "choice_file", "remember", "remembered", "try_kvm"]
