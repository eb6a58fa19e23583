"""The peers: what else can run a command away from the host, started on the very same base image.

Each is used the way that serves it best here: ``runsc`` reads the image as EROFS (no gofer), ``crun`` and
``bwrap`` get the unpacked tree; none sets up cgroups or a network, and each has less to do than a Wardian
sandbox (no agent, no limits, no identity). All run the command that the E2B SDK would run.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

BASH: tuple[str, ...] = ("/bin/bash", "-l", "-c")
"""How the official SDK runs a command line."""

ENVIRONMENT = (
    "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME=/home/user",
    "USER=user",
    "LOGNAME=user",
)
IDLE = ("/bin/sleep", "infinity")
PR_SET_CHILD_SUBREAPER = 36
CAPABILITIES = ("CAP_KILL", "CAP_NET_BIND_SERVICE", "CAP_AUDIT_WRITE")


class PeerFailed(Exception):
    """A peer's command did not succeed."""


@dataclass(frozen=True, slots=True)
class Root:
    """The base image in both forms: the EROFS file and the same tree unpacked."""

    image: Path
    tree: Path

    @classmethod
    def unpack(cls, image: Path, into: Path) -> Root:
        """Unpack ``image`` below ``into``."""
        tree = into / "tree"
        tree.mkdir(parents=True)
        run(("fsck.erofs", f"--extract={tree}", "--overwrite", "--preserve", str(image)))
        return cls(image, tree)


def run(argv: Sequence[str]) -> float:
    """Run to the end, and return how long it took (ms). Raises :class:`PeerFailed`.

    Nothing is piped: a detached runtime would hold the pipe open and hang its reader.
    """
    started = time.perf_counter()
    done = subprocess.run(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    spent = 1000 * (time.perf_counter() - started)
    if done.returncode:
        raise PeerFailed(f"{Path(argv[0]).name} … {argv[-1]}: exit status {done.returncode}")
    return spent


def become_subreaper() -> None:
    """Inherit what detached runtimes leave behind, so that :func:`reap` can end it at once.

    ``runsc delete`` would poll for 1.7 s until somebody reaps its sandbox.
    """
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def reap(pid: int) -> None:
    """Kill one process and what it started, and reap what became ours."""
    try:
        family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for process in family:
        if process.is_running():
            process.kill()
    for process in family:
        try:
            os.waitpid(process.pid, 0)
        except ChildProcessError:
            process.wait(timeout=5)


def bundle(directory: Path, root: Root, argv: Sequence[str], *, gvisor: bool) -> Path:
    """An OCI bundle that runs ``argv`` as the image's user."""
    return _bundle(directory, _spec(root, argv, gvisor=gvisor, empty=directory))


def changing(directory: Path, root: Root, tree: Path, argv: Sequence[str]) -> Path:
    """An OCI bundle for gVisor that runs ``argv`` as root on the files of ``tree``, and may change them."""
    spec = dict(_spec(root, argv, gvisor=True, empty=directory))
    del spec["annotations"]
    spec["process"] = {**spec["process"], "user": {"uid": 0, "gid": 0}}
    spec["root"] = {"path": str(tree), "readonly": False}
    return _bundle(directory, spec)


def _bundle(directory: Path, spec: Mapping[str, Any]) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(spec))
    return directory


def _spec(root: Root, argv: Sequence[str], *, gvisor: bool, empty: Path) -> Mapping[str, Any]:
    annotations = {
        "dev.gvisor.spec.rootfs.source": str(root.image),
        "dev.gvisor.spec.rootfs.type": "erofs",
        "dev.gvisor.spec.rootfs.overlay": "memory",
    }
    mounts: list[dict[str, Any]] = [{"destination": "/proc", "type": "proc", "source": "proc"}]
    if not gvisor:  # gVisor brings both along
        for destination, options in (("/dev", ["nosuid", "mode=755"]), ("/tmp", ["mode=1777"])):
            mounts.append(
                {"destination": destination, "type": "tmpfs", "source": "tmpfs", "options": options}
            )
    return {
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": 1000, "gid": 1000},
            "args": list(argv),
            "env": list(ENVIRONMENT),
            "cwd": "/",
            "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), CAPABILITIES),
            "noNewPrivileges": True,
        },
        "root": {"path": str(empty if gvisor else root.tree), "readonly": not gvisor},
        "hostname": "peer",
        "mounts": mounts,
        "linux": {"namespaces": [{"type": kind} for kind in ("pid", "mount", "ipc", "uts", "network")]},
        **({"annotations": annotations} if gvisor else {}),
    }


@dataclass(slots=True)
class Oci:
    """One OCI runtime on its own state directory. Times are milliseconds of its commands."""

    command: tuple[str, ...]
    bundles: Mapping[str, Path]
    _made: int = field(default=0, init=False)

    def run(self, made: Path | None = None) -> float:
        """Start, run the command of a bundle, end, clean up: one command of the runtime."""
        return run((*self.command, "run", f"--bundle={made or self.bundles['true']}", self._name()))

    def inside(self, name: str, *argv: str) -> tuple[str, ...]:
        """The command line that runs ``argv`` in a container as its user."""
        return (*self.command, "exec", "--user=1000:1000", name, *argv)

    def exec(self, name: str) -> float:
        return run(self.inside(name, *BASH, "true"))

    @contextmanager
    def idle(self) -> Iterator[str]:
        """A container that sleeps, by name."""
        name = self._name()
        run((*self.command, "run", "--detach", f"--bundle={self.bundles['idle']}", name))
        try:
            yield name
        finally:
            self.remove(name)

    def restored(self, snapshot: Path) -> tuple[str, float]:
        """Restore a snapshot in a new container: its name, and the time until the runtime said done."""
        name = self._name()
        spent = run(
            (
                *self.command,
                "restore",
                "--detach",
                f"--bundle={self.bundles['idle']}",
                f"--image-path={snapshot}",
                name,
            )
        )
        return name, spent

    def checkpoint(self, name: str, snapshot: Path, *, leave_running: bool) -> float:
        snapshot.mkdir(parents=True)
        flags = ("--leave-running",) if leave_running else ()
        return run((*self.command, "checkpoint", *flags, f"--image-path={snapshot}", name))

    def freeze_and_thaw(self, name: str) -> tuple[float, float]:
        return run((*self.command, "pause", name)), run((*self.command, "resume", name))

    def remove(self, name: str) -> None:
        reap(self.pid(name))
        subprocess.run(
            (*self.command, "delete", "--force", name), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    def pid(self, name: str) -> int:
        """The host's number of the container's first process (for gVisor, of its kernel)."""
        state = subprocess.run((*self.command, "state", name), capture_output=True, check=True)
        return int(json.loads(state.stdout)["pid"])

    def _name(self) -> str:
        self._made += 1
        return f"bench-{os.getpid()}-{self._made:05}"  # no name may begin another


def runsc(scratch: Path) -> tuple[str, ...]:
    """gVisor's runtime, with its state below ``scratch``."""
    state = f"--root={scratch / 'runsc-state'}"
    return ("runsc", state, "--network=none", "--ignore-cgroups", "--platform=systrap")


def by_hand(scratch: Path, name: str, image: Path, argv: Sequence[str]) -> Oci:
    """A runtime whose ``run`` does ``argv`` in a new gVisor container on an image file."""
    root = Root(image, image.with_suffix(""))
    return Oci(runsc(scratch), {"true": bundle(scratch / name, root, argv, gvisor=True)})


@dataclass(frozen=True, slots=True)
class Peers:
    """All of them, on one base image."""

    root: Root
    runsc: Oci
    crun: Oci

    @classmethod
    def on(cls, root: Root, scratch: Path, shield: Sequence[str] = ()) -> Peers:
        """Lay out bundles and state directories below ``scratch``. ``shield`` goes before every ``crun``."""
        become_subreaper()
        commands = {
            "runsc": runsc(scratch),
            "crun": (*shield, "crun", f"--root={scratch / 'crun-state'}", "--cgroup-manager=disabled"),
        }
        made = {
            name: Oci(
                command,
                {
                    kind: bundle(scratch / f"{name}-{kind}", root, argv, gvisor=name == "runsc")
                    for kind, argv in (("true", (*BASH, "true")), ("idle", IDLE))
                },
            )
            for name, command in commands.items()
        }
        return cls(root, made["runsc"], made["crun"])

    def bwrap(self) -> float:
        """bubblewrap: all namespaces, the tree read-only, the same command as the same user."""
        return run((*self._bwrap(), *BASH, "true"))

    def native(self) -> float:
        """The same command in the same tree with nothing around it: `chroot` keeps nobody in."""
        return run(
            ("chroot", "--userspec=1000:1000", str(self.root.tree), "env", "-i", *ENVIRONMENT, *BASH, "true")
        )

    @contextmanager
    def bwrap_idle(self) -> Iterator[int]:
        """A bubblewrap that sleeps; yields its pid."""
        process = subprocess.Popen((*self._bwrap(), *IDLE), stdin=subprocess.DEVNULL)
        try:
            yield process.pid
        finally:
            reap(process.pid)
            process.wait()

    def _bwrap(self) -> tuple[str, ...]:
        names = (pair.split("=", 1) for pair in ENVIRONMENT)
        environment = [word for name, value in names for word in ("--setenv", name, value)]
        return (
            "bwrap",
            "--unshare-all",
            "--die-with-parent",
            "--clearenv",
            *environment,
            "--uid",
            "1000",
            "--gid",
            "1000",
            *("--ro-bind", str(self.root.tree), "/"),
            *("--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp"),
        )


@contextmanager
def without_hybrid_cgroups() -> Iterator[tuple[str, ...]]:
    """What to put before ``crun``, which refuses hosts that mount both versions of cgroups.

    There it is shown a mount namespace with one version only (about a millisecond more); elsewhere nothing.
    """
    if not Path("/sys/fs/cgroup/unified").is_mount():
        yield ()
        return
    script = "umount /sys/fs/cgroup/unified && echo ready && exec sleep infinity"
    holder = subprocess.Popen(("unshare", "--mount", "sh", "-c", script), stdout=subprocess.PIPE)
    assert holder.stdout is not None
    try:
        if holder.stdout.readline() != b"ready\n":
            raise PeerFailed("cannot hide one version of cgroups from crun")
        yield ("nsenter", f"--mount=/proc/{holder.pid}/ns/mnt")
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()


def sweep(scratch: Path) -> None:
    """End what a killed run may have left in ``scratch``."""
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if any(str(scratch) in word for word in words) and process.pid != os.getpid():
            process.send_signal(signal.SIGKILL)
    shutil.rmtree(scratch, ignore_errors=True)
