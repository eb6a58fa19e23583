"""The jail of one machine: Firecracker's root directory, what lies in it, and the jailer's command line.

    <base>/firecracker/<id>/root/   Firecracker's root; everything it is told of lies here, under ``Names``

What a machine only reads is a hard link to the file (or a copy, where that is on another file system), so
that clones of one snapshot map one file. ``unshare`` gives it an empty network besides; the jailer gives it a
mount and a pid namespace, a user, a control group, and Firecracker its own system call filter.
"""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from wardian.isolation.firecracker.tools import Tools
from wardian.model.resources import Resources

PROGRAM = "firecracker"
OWN_MIB = 64
"""What Firecracker needs beside the guest's memory, at most."""

CPU_PERIOD_US = 100_000
THREADS_MAX = 64
"""Of Firecracker's, on the host. The guest's processes are behind its own kernel."""

FILES_MAX = 256


class Names:
    """What lies in a jail, as Firecracker names it."""

    API = "api.sock"
    VSOCK = "v.sock"
    KERNEL = "kernel"
    INITRD = "initrd"
    ROOT = "root.erofs"
    DISK = "disk.img"
    STATE, MEMORY = "state", "memory"
    STATE_OUT, MEMORY_OUT = "state.out", "memory.out"
    METRICS = "metrics"
    PID = f"{PROGRAM}.pid"


class Jail:
    """One machine's jail below ``base``."""

    def __init__(self, base: Path, machine_id: str) -> None:
        self.id = machine_id
        self.base = base
        self.home = base / PROGRAM / machine_id
        self.root = self.home / "root"

    def __truediv__(self, name: str) -> Path:
        return self.root / name

    def create(self) -> None:
        """Make it; fails if it exists."""
        self.base.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.root.mkdir(mode=0o700, parents=True)

    def remove(self) -> None:
        """Remove it and everything in it. Idempotent."""
        shutil.rmtree(self.home, ignore_errors=True)

    def lend(self, file: Path, name: str) -> None:
        """Let Firecracker read ``file`` as ``name``."""
        source, target = file.resolve(), self / name
        target.unlink(missing_ok=True)
        try:
            os.link(source, target)
        except OSError:
            shutil.copyfile(source, target)
            target.chmod(0o444)

    def give(self, name: str, uid: int) -> Path:
        """An empty file of Firecracker's own, to write to."""
        path = self / name
        path.write_bytes(b"")
        self.hand_over(name, uid)
        return path

    def hand_over(self, name: str, uid: int) -> None:
        """Make a file Firecracker's own."""
        path = self / name
        path.chmod(0o600)
        os.chown(path, uid, uid)

    @contextmanager
    def short(self, name: str) -> Iterator[str]:
        """A path of ``name`` that fits into a socket's address, while the context lasts."""
        fd = os.open(self.root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            yield f"/proc/self/fd/{fd}/{name}"
        finally:
            os.close(fd)

    def connect(self, name: str) -> socket.socket:
        """A non-blocking stream socket connected to ``name``. Raises ``OSError``."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            with self.short(name) as path:
                sock.connect(path)
        except BaseException:
            sock.close()
            raise
        return sock


def command(tools: Tools, jail: Jail, resources: Resources, *, uid: int, cgroup_parent: str) -> Sequence[str]:
    """What starts a Firecracker that waits for its first request. It outlives whoever starts it."""
    return (
        *(str(tools.unshare), "--net", "--ipc", "--uts", "--"),
        str(tools.jailer),
        *("--id", jail.id, "--exec-file", str(tools.firecracker)),
        *("--uid", str(uid), "--gid", str(uid)),
        *("--chroot-base-dir", str(jail.base)),
        *("--cgroup-version", "2", "--parent-cgroup", cgroup_parent),
        *(word for setting in cgroup_settings(resources) for word in ("--cgroup", setting)),
        *("--resource-limit", f"no-file={FILES_MAX}"),
        "--new-pid-ns",
        "--daemonize",
        *("--", "--api-sock", f"/{Names.API}"),
    )


def cgroup_settings(resources: Resources) -> Sequence[str]:
    """The bounds of a machine's control group, as the jailer wants them: ``file=value``."""
    memory = (resources.memory_mib + OWN_MIB) << 20
    return (
        f"memory.max={memory}",
        "memory.swap.max=0",
        f"cpu.max={resources.cpu_count * CPU_PERIOD_US} {CPU_PERIOD_US}",
        f"pids.max={THREADS_MAX}",
    )
