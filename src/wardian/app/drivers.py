"""The isolation drivers, from the settings."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from wardian.config import BadSetting, Settings
from wardian.images.catalog import default_cache
from wardian.isolation.drivers import Make
from wardian.isolation.gvisor import GvisorDriver, Tools
from wardian.isolation.port import Driver
from wardian.isolation.qemu import QemuDriver
from wardian.isolation.qemu import Tools as QemuTools
from wardian.model.errors import Unavailable

FIRMWARE = Path("/usr/share/qemu/qboot.rom")


def serving(settings: Settings) -> Mapping[str, Make]:
    """The drivers that the operator wants, in that order."""
    known = drivers_of(settings)
    if unknown := [name for name in settings.drivers if name not in known]:
        raise BadSetting(f"there is no driver {unknown[0][:32]!r}", hint=f"there are {', '.join(known)}")
    return {name: known[name] for name in settings.drivers}


def drivers_of(settings: Settings) -> Mapping[str, Make]:
    """The isolation drivers there are, by name."""
    return {
        GvisorDriver.name: lambda: _gvisor(settings),
        QemuDriver.name: lambda: _qemu(settings),
    }


def _gvisor(settings: Settings) -> Driver:
    launcher, guest = settings.programs / "launcher/build", settings.programs / "guest/build"
    tools = Tools(
        runsc=settings.runsc,
        launcher=launcher / "wardian-launch",
        enter=launcher / "wardian-enter",
        echo=launcher / "wardian-echo",
        agent=guest / "wardian-guest",
    )
    for program in (tools.launcher, tools.enter, tools.echo, tools.agent, tools.runsc):
        if not os.access(program, os.X_OK):
            raise Unavailable(f"{program} is missing", code="program_missing", hint="run `make setup`")
    return GvisorDriver(settings.data_dir / "gvisor", tools)


def _qemu(settings: Settings) -> Driver:
    host_dir = (settings.cache_dir or default_cache()) / "qemu"
    return QemuDriver(settings.data_dir / "qemu", qemu_tools(settings), host_dir=host_dir)


def qemu_tools(settings: Settings) -> QemuTools:
    """What microVMs are made with."""
    launcher, guest = settings.programs / "launcher/build", settings.programs / "guest/build"
    cache = settings.cache_dir or default_cache()
    return QemuTools(
        qemu=settings.qemu,
        firmware=FIRMWARE,
        launcher=launcher / "wardian-launch",
        ram=launcher / "wardian-ram",
        tsc=launcher / "wardian-tsc",
        init=guest / "wardian-init",
        agent=guest / "wardian-guest",
        kernels=cache / "kernels",
        kernel=settings.kernel,
        kernel_arguments=settings.kernel_arguments,
    )


__all__ = ["drivers_of", "qemu_tools", "serving"]
