"""What a machine is made with, and what of it is good enough."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from wardian.model.errors import Kind, WardianError

INSTALL_HINT = "install a release of firecracker and its jailer: github.com/firecracker-microvm/firecracker"

OLDEST = (1, 16, 2)
"""Before it, no new connection reached a guest that had been paused and resumed without a snapshot; free page
reporting came with 1.14."""


class FirecrackerUnusable(WardianError):
    """There is no Firecracker we can use, or something that it needs is missing."""

    kind, code = Kind.UNAVAILABLE, "firecracker_unusable"


@dataclass(frozen=True, slots=True)
class Tools:
    """Programs and files.

    ``kernel`` is an uncompressed ``vmlinux`` with virtio over MMIO and vsock; ``initrd`` holds the
    agent, which listens on the vsock port of the link. ``kernel_arguments`` go onto its command line.
    """

    firecracker: Path
    jailer: Path
    kernel: Path
    initrd: Path
    kernel_arguments: str = ""
    unshare: Path = Path("/usr/bin/unshare")


def version_of(program: Path) -> str:
    """The version that ``firecracker`` or ``jailer`` says it has. Raises :class:`FirecrackerUnusable`."""
    try:
        said = subprocess.run([str(program), "--version"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise FirecrackerUnusable(f"{program} cannot be run: {error}", hint=INSTALL_HINT) from error
    found = re.search(r"\bv(\d+\.\d+\.\d+)\b", said)
    if found is None:
        raise FirecrackerUnusable(f"{program} is no Firecracker: it says {said[:64]!r}", hint=INSTALL_HINT)
    return found[1]


def checked_versions(firecracker: str, jailer: str) -> str:
    """Their one version. A jailer belongs to one Firecracker. Raises :class:`FirecrackerUnusable`."""
    if firecracker != jailer:
        raise FirecrackerUnusable(
            f"firecracker is {firecracker} and its jailer {jailer}: they must be of one release",
            hint=INSTALL_HINT,
        )
    if tuple(int(part) for part in firecracker.split(".")) < OLDEST:
        wanted = ".".join(map(str, OLDEST))
        raise FirecrackerUnusable(
            f"Firecracker {firecracker} is too old; {wanted} will do", hint=INSTALL_HINT
        )
    return firecracker
