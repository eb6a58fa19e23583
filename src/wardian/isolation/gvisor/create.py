"""What a machine booted by ``runsc create`` needs beside the launcher: a bundle, and finding what runsc made
of it.

``runsc create`` passes nothing but stdio to a machine, so the link is the guest's stdin, the agent its
stdout, and ``wardian-enter`` comes in by a bind mount, which costs a gofer process. It is the slow way for
unknown versions.
"""

from __future__ import annotations

import json
import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

from wardian.isolation.gvisor.config import machine_config
from wardian.isolation.host.directory import CONTROL, MachineDirectory
from wardian.isolation.host.process import HeldProcess
from wardian.isolation.port import MachineSpec

BUNDLE = "bundle"
MOUNT_IN_GUEST = "/.wardian"
_ENTER_DIR, _DISK_DIR, _EMPTY_DIR = "enter", "disk", "empty"


def disk_mount_point(directory: MachineDirectory) -> Path:
    """Where the launcher mounts the disk, in its own mount namespace."""
    return directory / BUNDLE / _DISK_DIR


def write_bundle(directory: MachineDirectory, spec: MachineSpec, enter: Path) -> Path:
    """Make the OCI bundle and return its path."""
    bundle = directory / BUNDLE
    for name in (_ENTER_DIR, _DISK_DIR, _EMPTY_DIR):
        (bundle / name).mkdir(parents=True)
    shutil.copy(enter, bundle / _ENTER_DIR / "enter")
    mount = {
        "destination": MOUNT_IN_GUEST,
        "type": "bind",
        "source": str(bundle / _ENTER_DIR),
        "options": ["rbind", "ro", "nosuid", "nodev"],
    }
    configuration = machine_config(
        spec.resources,
        root_image=spec.root.path,
        root_path=bundle / _EMPTY_DIR,
        overlay=f"dir={bundle / _DISK_DIR}",
        command=f"{MOUNT_IN_GUEST}/enter",
        mounts=(mount,),
    )
    (bundle / "config.json").write_bytes(configuration)
    return bundle


def adopt_control_socket(directory: MachineDirectory) -> None:
    """Let the machine's control socket have the name it has in every machine. Raises ``OSError``."""
    for state_file in (directory / BUNDLE).glob("*.state"):
        state: dict[str, Any] = json.loads(state_file.read_text())
        (directory / CONTROL).symlink_to(state["sandbox"]["controlSocketPath"])
        return
    raise FileNotFoundError(f"runsc left no state file in {directory / BUNDLE}")


def sentry_below(init: HeldProcess, directory: MachineDirectory) -> HeldProcess:
    """The sentry of the machine in ``directory`` whose first process is ``init``: itself, or a child of
    it."""
    if not (directory / BUNDLE).exists():
        return init
    with suppress(OSError):
        for child in Path(f"/proc/{init.pid}/task/{init.pid}/children").read_text().split():
            held = HeldProcess(int(child), os.pidfd_open(int(child)))
            if b"boot" in Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0"):
                return held
            held.close()
    return init  # it is ending


__all__ = ["BUNDLE", "adopt_control_socket", "disk_mount_point", "sentry_below", "write_bundle"]
