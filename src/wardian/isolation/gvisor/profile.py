"""What differs between versions of runsc: the command line of its sentry.

A *direct* profile starts ``runsc boot`` itself: one process start instead of four, 33 ms instead of 150. That
command line is internal to runsc, so it is used only with versions it was tried on. Any other version is
driven by ``runsc create``, which is public and stable, and urpc from there on. ``runsc exec`` and ``runsc
run`` are never used.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from wardian.model.resources import Resources

# Descriptor numbers of the sentry. Sockets in a snapshot are found again by these numbers: changing any of
# them is a new BOOT_LAYOUT, and snapshots of the old layout are refused.
BOOT_LAYOUT = 1
FD_IMAGE, FD_SYNC, FD_CONTROL, FD_CONFIG, FD_STDIO, FD_DISK, FD_LINK, FD_AGENT, FD_ENTER = (
    4,
    5,
    6,
    7,
    8,
    11,
    12,
    13,
    14,
)
GUEST_FD_AGENT, GUEST_FD_LINK = 6, 7

VISIBLE_CPUS_MIN = 2
"""Runsc gives its own Go runtime as many threads as the guest has CPUs. With one, every hand-over between
guest and sentry waits for the runtime's monitor, and starting a program takes twice as long (docs/decisions).
So a guest of one CPU sees two; what it may burn is bounded by its control group all the same."""

OLDEST = 20240101
"""Runsc before this date lacks what every profile needs (EROFS roots, passed descriptors, separate page
files)."""


@dataclass(frozen=True, slots=True)
class Profile:
    """How to boot one family of runsc versions. ``layout`` goes into the build id of snapshots."""

    name: str
    direct: bool

    @property
    def layout(self) -> str:
        """What a snapshot must share with the machine that restores it, beside the runsc binary."""
        return f"{self.name}.{BOOT_LAYOUT}"

    def command(self, machine_id: str, resources: Resources, *, bundle: Path) -> list[str]:
        """The sentry's argv. ``bundle`` is where ``runsc create`` has its files; direct boots need none."""
        common = [
            "--network=sandbox" if self.direct else "--network=none",
            "--ignore-cgroups=true",
            "--platform=systrap",
            "--directfs=false",
        ]
        if not self.direct:
            return ["runsc", f"--root={bundle}", *common, "create", f"--bundle={bundle}", machine_id]
        memory = resources.memory_mib << 20
        stdio = ",".join(str(FD_STDIO + i) for i in range(3))
        return [
            "runsc",
            "--root=/state",
            *common,
            "boot",
            "--bundle=/b",
            f"--controller-fd={FD_CONTROL}",
            f"--spec-fd={FD_CONFIG}",
            f"--start-sync-fd={FD_SYNC}",
            f"--stdio-fds={stdio}",
            f"--total-memory={memory}",
            f"--total-host-memory={memory}",
            f"--cpu-num={max(resources.cpu_count, VISIBLE_CPUS_MIN)}",
            "--host-shmem-huge=never",
            "--product-name=wardian",
            f"--io-fds={FD_IMAGE}",
            "--gofer-mount-confs=erofs:anon",
            f"--gofer-filestore-fds={FD_DISK}",
            f"--pass-fd={FD_LINK}:{GUEST_FD_LINK}",
            f"--pass-fd={FD_AGENT}:{GUEST_FD_AGENT}",
            f"--exec-fd={FD_ENTER}",
            machine_id,
        ]


CREATE = Profile(name="create", direct=False)
_DIRECT = {20240729: Profile(name="direct-2024", direct=True)}


def release_date(version_text: str) -> int | None:
    """The date in the output of ``runsc --version``, as a number: ``release-20240729.0`` is 20240729."""
    match = re.search(r"(?:release-|0\.0~|version )(20\d{6})\b", version_text)
    return int(match[1]) if match else None


def choose_profile(date: int | None) -> Profile:
    """The profile for a release date; versions nobody tried get the public command line."""
    return _DIRECT.get(date or 0, CREATE)


__all__ = [
    "BOOT_LAYOUT",
    "CREATE",
    "FD_AGENT",
    "FD_CONFIG",
    "FD_CONTROL",
    "FD_DISK",
    "FD_ENTER",
    "FD_IMAGE",
    "FD_LINK",
    "FD_STDIO",
    "FD_SYNC",
    "OLDEST",
    "Profile",
    "choose_profile",
    "release_date",
]
