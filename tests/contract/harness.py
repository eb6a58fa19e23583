"""Machines for tests: a small root image with a shell, and members that talk to the real agent."""

from __future__ import annotations

import asyncio
import hashlib
import os
import pickle
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path

from tests.native import make

from wardian.guest.guest import Guest, Identity, Output, Process, ProcessConfig
from wardian.images.catalog import default_cache
from wardian.isolation import qemu as qemu_parts
from wardian.isolation.gvisor import GvisorDriver, Tools
from wardian.isolation.gvisor.profile import Profile
from wardian.isolation.port import (
    Driver,
    Machine,
    MachineGone,
    MachineImage,
    MachineSpec,
    Prepared,
    RootImage,
)
from wardian.model.resources import Resources

REPOSITORY = Path(__file__).resolve().parents[2]
KERNELS = default_cache() / "kernels"
SMALL = Resources(cpu_count=1, memory_mib=128, disk_mib=64, processes_max=64)
PROGRAMS = [
    "dash",
    "cat",
    "chmod",
    "chown",
    "cp",
    "dd",
    "head",
    "id",
    "kill",
    "ls",
    "mkdir",
    "mount",
    "rm",
    "sleep",
    "touch",
    "true",
    "uname",
    "wc",
]


def gvisor_tools() -> Tools:
    """The programs as the build leaves them."""
    build = REPOSITORY / "launcher/build"
    return Tools(
        runsc=Path("/usr/bin/runsc"),
        launcher=build / "wardian-launch",
        enter=build / "wardian-enter",
        echo=build / "wardian-echo",
        agent=REPOSITORY / "guest/build/wardian-guest",
    )


def make_programs() -> None:
    """Build launcher and agent if their sources changed."""
    for directory in ("launcher", "guest"):
        make(REPOSITORY / directory)


def make_root(directory: Path) -> RootImage:
    """A root image with a shell, a few programs and ``/bin/inside``."""
    tree = directory / "tree"
    for name in ("bin", "etc", "home/user", "root", "tmp", "proc", "sys", "dev"):
        (tree / name).mkdir(parents=True)
    os.chown(tree / "home/user", 1000, 1000)
    (tree / "tmp").chmod(0o1777)
    inside = tree / "bin/inside"
    source = Path(__file__).with_name("inside.c")
    subprocess.run(["gcc", "-std=gnu11", "-O1", "-static", "-o", str(inside), str(source)], check=True)
    needed = set()
    for program in PROGRAMS:
        path = shutil.which(program)
        assert path is not None, program
        shutil.copy(path, tree / "bin" / program)
        listed = subprocess.run(["ldd", path], capture_output=True, text=True, check=True).stdout
        needed |= {word for word in listed.split() if word.startswith("/")}
    for library in needed:
        (tree / library[1:]).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(library, tree / library[1:])
    (tree / "bin/sh").symlink_to("dash")
    (tree / "etc/motd").write_text("welcome\n")
    (tree / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh\n")
    (tree / "etc/group").write_text("root:x:0:\nuser:x:1000:\n")
    image = directory / "root.erofs"
    subprocess.run(["mkfs.erofs", "-Enoinline_data", "--quiet", str(image), str(tree)], check=True)
    return RootImage(path=image, digest="sha256:" + "ab" * 32)


@dataclass
class Member:
    """A machine and the guest inside."""

    machine: Machine
    guest: Guest

    async def sh(self, script: str, *, user: str = "root") -> str:
        """What a shell script prints; it must succeed."""
        process = await self.start("/bin/sh", "-c", script, user=user)
        text, code = "", None
        async for item in process.subscribe():
            if isinstance(item, Output):
                text += item.data.decode(errors="replace")
            else:
                code = item.exit_code
        assert code == 0, f"{script!r} ended with {code}: {text}"
        return text

    async def start(self, *argv: str, user: str = "root") -> Process:
        """Run a program with an open stdin."""
        config = ProcessConfig(cmd=argv[0], args=argv[1:], envs={}, cwd="/")
        return await self.guest.exec(config, user=user, stdin=True)

    async def capture(self, directory: Path, *, keep_running: bool) -> MachineImage:
        """Quiesce and capture; a machine that goes on is unquiesced."""
        os.mkdir(directory)
        await self.guest.quiesce()
        image = await self.machine.capture(directory, keep_running=keep_running)
        if keep_running and not self.machine.frozen:
            await self.guest.unquiesce()
        return image


async def lines_of(process: Process) -> AsyncIterator[str]:
    """The lines a process prints, as they come."""
    rest = ""
    async for item in process.subscribe():
        if not isinstance(item, Output):
            return
        rest += item.data.decode()
        while "\n" in rest:
            line, rest = rest.split("\n", 1)
            yield line


class House:
    """Makes machines with one driver, and removes what a test leaves.

    Where booting takes seconds, ``start`` clones one machine that was booted for all tests; ``boot`` boots.
    ``warm`` is where those machines are kept.
    """

    def __init__(self, make_driver: Callable[[], Driver], root: RootImage, warm: Path) -> None:
        self._make_driver = make_driver
        self.warm = warm
        self.root = root
        self.driver = make_driver()
        self.members: list[Member] = []
        self._prepared: list[Prepared] = []
        self._epoch = 0

    async def prepare(self, resources: Resources = SMALL) -> Prepared:
        prepared = await self.driver.prepare(MachineSpec(root=self.root, resources=resources))
        self._prepared.append(prepared)
        return prepared

    async def boot(self, resources: Resources = SMALL) -> Member:
        return await self.move_in(await (await self.prepare(resources)).start())

    async def start(self, resources: Resources = SMALL) -> Member:
        if self.driver.name not in SLOW_BOOTS:
            return await self.boot(resources)
        return await self.restore(await self._booted(resources), resources)

    async def _booted(self, resources: Resources) -> MachineImage:
        key = hashlib.sha256(f"{self.driver.name} {self.root} {resources}".encode()).hexdigest()[:16]
        told = self.warm / f"{key}.pickle"
        if not told.exists():
            member = await self.boot(resources)
            image = await member.capture(self.warm / key, keep_running=False)
            await member.guest.close()
            self.members.remove(member)
            told.write_bytes(pickle.dumps(image))
        image = pickle.loads(told.read_bytes())
        assert isinstance(image, MachineImage)
        return image

    async def restore(self, image: MachineImage, resources: Resources = SMALL) -> Member:
        return await self.move_in(await (await self.prepare(resources)).restore(image), clone=True)

    async def move_in(self, machine: Machine, *, clone: bool = False) -> Member:
        """Attach the guest of a machine."""
        self._epoch += 1
        member = Member(machine, Guest(machine.link))
        self.members.append(member)
        identity = Identity(hostname=f"clone-{self._epoch}", machine_id=f"{self._epoch:032x}")
        await member.guest.attach(self._epoch, identity if clone else None, timeout_s=60)
        return member

    async def let_go(self, member: Member) -> None:
        """Forget a member whose machine is somebody else's now."""
        await member.guest.close()
        self.members.remove(member)
        self._prepared = [prepared for prepared in self._prepared if prepared.id != member.machine.id]

    def second_driver(self) -> Driver:
        """Another driver on the same state, as a restarted server has it."""
        return self._make_driver()

    async def close(self) -> None:
        for member in self.members:
            await member.guest.close()
            with suppress(MachineGone):  # of a driver that let it go
                await member.machine.kill()
        for prepared in self._prepared:
            with suppress(MachineGone):
                await prepared.discard()
        await self.driver.sweep(set())
        await self.driver.close()


DriverMaker = Callable[[Path], Driver]


def gvisor(state_dir: Path, profile: Profile | None = None) -> Driver:
    """The gVisor driver as the server makes it."""
    return GvisorDriver(state_dir, gvisor_tools(), cgroup_parent="wardian-test", profile=profile)


def qemu_tools() -> qemu_parts.Tools:
    """The programs as the build leaves them, and the kernel as the set-up does."""
    launcher, guest = REPOSITORY / "launcher/build", REPOSITORY / "guest/build"
    return qemu_parts.Tools(
        qemu=Path("/usr/bin/qemu-system-x86_64"),
        firmware=Path("/usr/share/qemu/qboot.rom"),
        launcher=launcher / "wardian-launch",
        ram=launcher / "wardian-ram",
        tsc=launcher / "wardian-tsc",
        init=guest / "wardian-init",
        agent=guest / "wardian-guest",
        kernels=KERNELS,
    )


def qemu(state_dir: Path) -> Driver:
    """The QEMU driver as the server makes it."""
    return qemu_parts.QemuDriver(state_dir, qemu_tools(), cgroup_parent="wardian-test")


DRIVERS: dict[str, DriverMaker] = {"gvisor": gvisor, "qemu": qemu}
SLOW_BOOTS = {"qemu"}
IMAGE_FILES = {
    "gvisor": ("kernel.state", "pages.meta", "pages.data"),
    "qemu": ("devices.state", "memory.raw", "disk.raw", "seal.json"),
}
"""The files of a captured machine; the first one is what the driver's kernel would believe."""

PROCESS = {"gvisor": "sentry", "qemu": "vmm"}
"""Under what name a machine's record has its process."""


@dataclass(frozen=True)
class Holdings:
    """What this process and the host hold that a machine could leak."""

    fds: frozenset[str]
    children: frozenset[str]
    loops: frozenset[str]
    mounts: frozenset[str]
    groups: frozenset[Path]
    machines: frozenset[Path]

    def beyond(self, before: Holdings) -> dict[str, object]:
        """What there is that was not there before."""
        names = [each.name for each in fields(self)]
        new: dict[str, object] = {name: getattr(self, name) - getattr(before, name) for name in names}
        return {name: more for name, more in new.items() if more}

    @classmethod
    def now(cls, state_dir: Path) -> Holdings:
        """Of the host's only what is this driver's: other workers of this run have machines too."""
        fds, loops = set(), set()
        for fd in os.listdir("/proc/self/fd"):
            with suppress(OSError):
                fds.add(f"{fd}:{os.readlink(f'/proc/self/fd/{fd}')}")
        for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
            with suppress(OSError):
                if str(state_dir) in backing.read_text():
                    loops.add(backing.parts[3])
        root, mark = Path("/sys/fs/cgroup"), hashlib.sha256(os.fsencode(state_dir)).hexdigest()[:12]
        mounts = Path("/proc/self/mountinfo").read_text().splitlines()
        task = f"/proc/{os.getpid()}/task/{os.getpid()}/children"
        return cls(
            fds=frozenset(fd for fd in fds if "/proc/" not in fd),
            children=frozenset(Path(task).read_text().split()),
            loops=frozenset(loops),
            mounts=frozenset(line for line in mounts if str(state_dir) in line),
            groups=frozenset(path for depth in ("", "*/") for path in root.glob(f"{depth}*-{mark}/*/")),
            machines=frozenset(state_dir.glob("machines/*")),
        )


async def assert_nothing_leaked(before: Holdings, state_dir: Path) -> None:
    """Compare with ``before``, at last: the kernel takes loop devices down a moment after their last user.

    What went meanwhile is no leak: clients of earlier tests close their connections when they like.
    """
    leaked: dict[str, object] = {}
    for _ in range(1000):
        leaked = Holdings.now(state_dir).beyond(before)
        if not leaked:
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"left behind: {leaked}")
