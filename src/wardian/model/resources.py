"""What a machine may use. Every field is a hard bound, enforced outside the guest."""

from __future__ import annotations

from dataclasses import dataclass

from wardian.model.errors import Invalid

CPU_COUNT_MAX = 64
MEMORY_MIB_MIN, MEMORY_MIB_MAX = 128, 256 * 1024
DISK_MIB_MIN, DISK_MIB_MAX = 64, 1024 * 1024
PIDS_MIN, PIDS_MAX = 64, 30_000


@dataclass(frozen=True, slots=True)
class Resources:
    """Bounds of one machine.

    ``cpu_count`` is what the guest sees and how many cores' worth of time it may burn; ``memory_mib`` is the
    guest's RAM; ``disk_mib`` bounds what it may write on top of its root image; ``processes_max`` bounds its
    processes.
    """

    cpu_count: int = 2
    memory_mib: int = 512
    disk_mib: int = 2048
    processes_max: int = 256  # a fork bomb must end before its pages fill the default memory (2-3 MiB each)

    def __post_init__(self) -> None:
        for name, low, high in (
            ("cpu_count", 1, CPU_COUNT_MAX),
            ("memory_mib", MEMORY_MIB_MIN, MEMORY_MIB_MAX),
            ("disk_mib", DISK_MIB_MIN, DISK_MIB_MAX),
            ("processes_max", PIDS_MIN, PIDS_MAX),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise Invalid(f"{name} must be between {low} and {high}, not {value}", code="bad_resources")
