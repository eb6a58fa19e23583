"""What machine this was, and how busy: figures mean nothing without it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil


def machine() -> dict[str, Any]:
    """JSON-able facts: processor, memory, kernel, versions of everything that is compared."""
    return {
        "cpu": _cpu_model(),
        "cpus": os.cpu_count(),
        "hypervisor": "hypervisor" in _cpuinfo("flags").split(),
        "dev_kvm": Path("/dev/kvm").exists(),  # which does not mean that it works
        "memory_mb": psutil.virtual_memory().total >> 20,
        "kernel": platform.release(),
        "os": platform.freedesktop_os_release().get("PRETTY_NAME", ""),
        "cgroup": "v2" if Path("/sys/fs/cgroup/cgroup.controllers").exists() else "v1",
        "versions": dict(_versions()),
    }


def load() -> dict[str, float]:
    """How busy the machine is now: load averages and what all processors together have done (s)."""
    one, five, _ = os.getloadavg()
    times = psutil.cpu_times()
    return {
        "load_1m": one,
        "load_5m": five,
        "busy_s": times.user + times.system,
        "idle_s": times.idle,
        "steal_s": getattr(times, "steal", 0.0),
    }


def _versions() -> Mapping[str, str]:
    tools = {"runsc": "runsc --version", "crun": "crun --version", "bwrap": "bwrap --version"}
    packages = ("e2b", "uvicorn", "starlette", "wardian")
    return {name: _first_line(command) for name, command in tools.items()} | {
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in packages},
        "commit": _first_line("git rev-parse --short HEAD"),
    }


def _first_line(command: str) -> str:
    try:
        done = subprocess.run(command.split(), capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        return f"missing ({error})"
    return done.stdout.splitlines()[0] if done.stdout else ""


def _cpuinfo(key: str) -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return ""


def _cpu_model() -> str:
    return _cpuinfo("model name") or platform.machine()
