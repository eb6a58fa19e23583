"""The OCI configuration of a machine: what the sentry is told to be. Nothing in it belongs to a tenant."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from wardian.model.resources import Resources

AGENT_COMMAND = "/sbin/wardian-guest"
HOSTNAME = "sandbox"
NOFILE = 65536

# What root inside may do: enough for sudo, package managers, chown, mount, chroot, debuggers. These are
# powers over gVisor's kernel, none over the host's. No NET_ADMIN and NET_RAW: nothing honest needs them where
# there is no wire, and without them root cannot undo the redirect, and ping does not pretend to work.
_CAPABILITY_NAMES = """
    CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP SETFCAP NET_BIND_SERVICE
    IPC_LOCK IPC_OWNER SYS_CHROOT SYS_PTRACE SYS_ADMIN SYS_NICE SYS_RESOURCE MKNOD LEASE AUDIT_WRITE
"""
CAPABILITIES = tuple(f"CAP_{name}" for name in _CAPABILITY_NAMES.split())


def machine_config(
    resources: Resources,
    *,
    root_image: Path,
    overlay: str,
    root_path: Path = Path("/"),
    command: str = AGENT_COMMAND,
    mounts: tuple[dict[str, Any], ...] = (),
) -> bytes:
    """``config.json`` of a machine on the EROFS image ``root_image``; ``overlay`` is where its writes go.

    ``root_path`` must exist and means nothing; ``command`` is the path of the first program.
    """
    capabilities = list(CAPABILITIES)
    configuration = {
        "ociVersion": "1.0.2",
        "annotations": {
            "dev.gvisor.spec.rootfs.source": str(root_image),
            "dev.gvisor.spec.rootfs.type": "erofs",
            "dev.gvisor.spec.rootfs.overlay": overlay,
        },
        "root": {"path": str(root_path), "readonly": False},
        "hostname": HOSTNAME,
        "process": {
            "terminal": False,
            "user": {"uid": 0, "gid": 0},
            "args": [command, "--processes-max", str(resources.processes_max)],
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root"],
            "cwd": "/",
            "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), capabilities),
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": NOFILE, "soft": NOFILE}],
        },
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {
                "destination": "/sys",
                "type": "sysfs",
                "source": "sysfs",
                "options": ["nosuid", "noexec", "nodev", "ro"],
            },
            {
                "destination": "/dev/shm",
                "type": "tmpfs",
                "source": "shm",
                "options": ["nosuid", "nodev", "mode=1777", f"size={resources.memory_mib // 2}m"],
            },
            *mounts,
        ],
        "linux": {"namespaces": [{"type": kind} for kind in ("pid", "ipc", "uts", "mount", "network")]},
    }
    return json.dumps(configuration).encode()


__all__ = ["AGENT_COMMAND", "CAPABILITIES", "HOSTNAME", "machine_config"]
