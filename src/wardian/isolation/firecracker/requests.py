"""Every request we make of Firecracker's API, as a value. Pure.

What each body may hold is in Firecracker's OpenAPI description; a test checks every request against it. Paths
are as Firecracker sees them: relative to its jail.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from wardian.isolation.firecracker.jail import Names
from wardian.isolation.port import MachineSpec
from wardian.model.resources import Resources

GUEST_CID = 3
VCPU_MAX = 32
ROOT_DRIVE, DISK_DRIVE = "root", "disk"
BALLOON_STATISTICS_S = 0
"""Off: what a guest says of its own memory is nothing that we believe."""

_KERNEL = "quiet reboot=k panic=-1 pci=off i8042.noaux i8042.nokbd random.trust_cpu=on audit=0 lsm="


@dataclass(frozen=True, slots=True)
class Request:
    """One request. ``body`` None: it has none."""

    method: str
    path: str
    body: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Rate:
    """What one drive of a machine may do in a second; once, after its start, as much again."""

    bytes_per_s: int = 512 << 20
    operations_per_s: int = 20_000


def boot(
    spec: MachineSpec, rate: Rate | None, *, arguments: str = "", echo: bool = False
) -> Sequence[Request]:
    """Everything a fresh Firecracker is told, in order, for a machine that boots."""
    return (
        _machine(spec.resources),
        _boot_source(spec.resources, arguments, echo=echo),
        _drive(ROOT_DRIVE, Names.ROOT, rate, read_only=True),
        _drive(DISK_DRIVE, Names.DISK, rate, read_only=False),
        _vsock(),
        _balloon(),
        _entropy(),
        metrics(),
        Request("PUT", "/actions", {"action_type": "InstanceStart"}),
    )


def restore() -> Sequence[Request]:
    """Everything a fresh Firecracker is told to become a clone of what lies in its jail, and to run.

    The memory file is mapped privately: clones share its pages until they write to them.
    """
    load = {
        "snapshot_path": Names.STATE,
        "mem_backend": {"backend_type": "File", "backend_path": Names.MEMORY},
        "track_dirty_pages": False,
        "resume_vm": True,
        "clock_realtime": True,
    }
    return (metrics(), Request("PUT", "/snapshot/load", load))


def capture() -> Request:
    """Write the state and all of the memory of a paused machine into its jail."""
    body = {"snapshot_type": "Full", "snapshot_path": Names.STATE_OUT, "mem_file_path": Names.MEMORY_OUT}
    return Request("PUT", "/snapshot/create", body)


def pause() -> Request:
    return Request("PATCH", "/vm", {"state": "Paused"})


def resume() -> Request:
    return Request("PATCH", "/vm", {"state": "Resumed"})


def describe() -> Request:
    return Request("GET", "/")


def metrics() -> Request:
    """Where Firecracker writes its counters, a line of JSON each time."""
    return Request("PUT", "/metrics", {"metrics_path": Names.METRICS})


def flush_metrics() -> Request:
    return Request("PUT", "/actions", {"action_type": "FlushMetrics"})


def inflate(mib: int) -> Request:
    """Ask the guest for so much of its memory back; 0 gives it all again."""
    return Request("PATCH", "/balloon", {"amount_mib": mib})


def limit(drive: str, rate: Rate) -> Request:
    """Let a drive of a running machine be this fast from now on."""
    return Request("PATCH", f"/drives/{drive}", {"drive_id": drive, "rate_limiter": _limiter(rate)})


def vcpus(cores: int) -> int:
    """How many processors a guest sees: one, or an even number. The control group bounds their use."""
    return 1 if cores <= 1 else min(VCPU_MAX, cores + cores % 2)


def _machine(resources: Resources) -> Request:
    body = {
        "vcpu_count": vcpus(resources.cpu_count),
        "mem_size_mib": resources.memory_mib,
        "smt": False,
        "track_dirty_pages": False,
    }
    return Request("PUT", "/machine-config", body)


def _boot_source(resources: Resources, arguments: str, *, echo: bool) -> Request:
    words = [_KERNEL, f"wardian_processes={resources.processes_max}", "wardian_link=vsock"]
    line = " ".join([*words, *(["wardian_echo"] if echo else []), *arguments.split()])
    body = {"kernel_image_path": Names.KERNEL, "initrd_path": Names.INITRD, "boot_args": line}
    return Request("PUT", "/boot-source", body)


def _drive(name: str, path: str, rate: Rate | None, *, read_only: bool) -> Request:
    body: dict[str, Any] = {
        "drive_id": name,
        "path_on_host": path,
        "is_root_device": False,  # the initrd mounts both
        "is_read_only": read_only,
        "cache_type": "Unsafe",  # a disk lives as long as its machine, and a capture copies it after a pause
        "io_engine": "Sync",
    }
    if rate is not None:
        body["rate_limiter"] = _limiter(rate)
    return Request("PUT", f"/drives/{name}", body)


def _limiter(rate: Rate) -> Mapping[str, Any]:
    return {"bandwidth": _bucket(rate.bytes_per_s), "ops": _bucket(rate.operations_per_s)}


def _bucket(per_s: int) -> Mapping[str, int]:
    return {"size": per_s, "one_time_burst": per_s, "refill_time": 1000}


def _vsock() -> Request:
    return Request("PUT", "/vsock", {"guest_cid": GUEST_CID, "uds_path": Names.VSOCK})


def _balloon() -> Request:
    body = {
        "amount_mib": 0,
        "deflate_on_oom": True,
        "stats_polling_interval_s": BALLOON_STATISTICS_S,
        "free_page_reporting": True,  # what the guest frees goes back to the host by itself
    }
    return Request("PUT", "/balloon", body)


def _entropy() -> Request:
    return Request("PUT", "/entropy", {})
