"""What a machine is made with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

INSTALL_HINT = "apt-get install -t bookworm-backports qemu-system-x86"


@dataclass(frozen=True, slots=True)
class Tools:
    """Programs and files.

    ``launcher``, ``ram`` and ``tsc`` come from ``launcher/``, ``init`` and ``agent`` from ``guest/``.
    ``kernels`` is where ``make setup`` puts guest kernels; ``kernel`` is a user's own, with everything that a
    machine needs built in, and ``kernel_arguments`` go onto the command line of either.
    """

    qemu: Path
    firmware: Path
    launcher: Path
    ram: Path
    tsc: Path
    init: Path
    agent: Path
    kernels: Path
    kernel: Path | None = None
    kernel_arguments: str = ""


__all__ = ["INSTALL_HINT", "Tools"]
