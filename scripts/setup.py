"""Makes this machine ready for `make demo`, `make test` and `make bench`; does only what is still missing.

Steps: Debian packages, the Python environment (by uv), the guest agent and launcher, the guest kernel, a try
of what runs microVMs, the base image. Each first looks whether it is done, which takes a fraction of a second
for all, so an interrupted set-up simply goes on where it stopped. Needs nothing but Python's standard
library. Commands write to build/setup.log.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build"
LOG = BUILD / "setup.log"
VENV = ROOT / ".venv"
sys.path.insert(0, str(ROOT / "src"))

from wardian.cli.requirements import FROM_BACKPORTS, PACKAGES  # noqa: E402
from wardian.images import debian  # noqa: E402
from wardian.images.base import base_recipe  # noqa: E402
from wardian.images.catalog import Catalog  # noqa: E402

PACKAGES_WITHOUT_ROOT = {"uidmap": "building images as an ordinary user"}
PACKAGES_FOR_UV = {"python3-venv": "installing uv"}

RUNSC_OLDEST = 20240729
"""The gVisor release that everything was measured with; Debian 12 itself carries a much older one."""

QEMU_OLDEST = (9, 2)

KERNEL_PACKAGE = "linux-image-cloud-amd64"
BACKPORTS_FILE = Path("/etc/apt/sources.list.d/wardian-backports.sources")
CLUSTERS_FILE = Path("/etc/postgresql-common/createcluster.conf")
WIDTH = 17


class SetupError(Exception):
    """Set-up cannot go on; the message says why and what to do."""


def main() -> int:
    """Run every step. The exit status is 0 only when all of them are done."""
    BUILD.mkdir(exist_ok=True)
    with (BUILD / "setup.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        LOG.write_text("")
        started = time.monotonic()
        try:
            for step in (
                debian_packages,
                python_environment,
                native_programs,
                guest_kernel,
                micro_vms,
                base_image,
            ):
                step()
        except SetupError as error:
            say(f"\nset-up stopped: {error}\n")
            return 1
        except KeyboardInterrupt:
            say("\nset-up interrupted; run it again and it goes on from here\n")
            return 130
        say(f"set-up is complete ({time.monotonic() - started:.1f} s)\n")
    return 0


# --- Debian packages


def debian_packages() -> None:
    """Install what is missing of PACKAGES; gVisor comes from the backports of the mirror in use."""
    wanted = {name: package.why for name, package in PACKAGES.items()}
    if os.geteuid() != 0:
        wanted |= PACKAGES_WITHOUT_ROOT
    if not find_uv():
        wanted |= PACKAGES_FOR_UV
    if runsc_release() >= RUNSC_OLDEST:  # however it got here
        del wanted["runsc"]
    if qemu_release() >= QEMU_OLDEST:
        del wanted["qemu-system-x86"]
    present = installed_packages()
    missing = [name for name in wanted if name not in present or name in FROM_BACKPORTS]
    if not missing:
        done("Debian packages")
        return
    if not shutil.which("apt-get"):
        raise SetupError(f"this is not a Debian; install the likes of these yourself: {', '.join(missing)}")
    if os.geteuid() != 0 and not shutil.which("sudo"):
        raise SetupError(
            f"installing packages takes root. Run this as root once, or: apt install {' '.join(missing)}"
        )
    with step("Debian packages", f"installing {', '.join(missing)}"):
        run([*sudo(), "dpkg", "--configure", "-a"])  # an interrupted installation would be in the way
        if any(name in FROM_BACKPORTS for name in missing):
            add_backports()
        run([*sudo(), "apt-get", "update"])
        if "postgresql" in missing:
            keep_postgres_quiet()
        install(missing)
    if runsc_release() < RUNSC_OLDEST:
        raise SetupError(f"this host's `runsc` is still older than {RUNSC_OLDEST}: remove it from PATH")
    if qemu_release() < QEMU_OLDEST:
        raise SetupError(f"this host's QEMU is still older than {QEMU_OLDEST}: remove it from PATH")


def install(packages: Sequence[str]) -> None:
    """apt-get install; what Debian 12 has only in old versions is asked of its backports."""
    plain = [name for name in packages if name not in FROM_BACKPORTS]
    newer = [name for name in packages if name in FROM_BACKPORTS]
    options = ["install", "-y", "--no-install-recommends"]
    environment = {"DEBIAN_FRONTEND": "noninteractive"}
    if plain:
        run([*sudo(environment), "apt-get", *options, *plain], environment)
    if newer:
        run([*sudo(environment), "apt-get", *options, *backports_release(), *newer], environment)


def keep_postgres_quiet() -> None:
    """Let Debian's package make no cluster and start no server by itself: tests start their own."""
    if not CLUSTERS_FILE.exists():
        run([*sudo(), "mkdir", "-p", str(CLUSTERS_FILE.parent)])
        run([*sudo(), "tee", str(CLUSTERS_FILE)], input_text="create_main_cluster = false\n")


def backports_release() -> list[str]:
    """apt's option for what comes from backports here."""
    return ["-t", "bookworm-backports"] if codename() == "bookworm" else []


def add_backports() -> None:
    """Add the backports of the archive this machine already uses, signed by the key it already trusts."""
    if codename() != "bookworm":
        return  # later releases carry a new enough gVisor themselves
    sources = debian.host_sources()
    if any(source.suite == "bookworm-backports" for source in sources):
        return
    release = [source for source in debian.archive(sources, "bookworm") if source.suite == "bookworm"]
    if not release:
        raise SetupError(
            "gVisor comes from Debian's bookworm-backports, but this machine names no Debian mirror to ask.\n"
            "Add /etc/apt/sources.list.d/debian.sources for it, from a mirror you trust, then run this again."
        )
    backports = debian.Source(release[0].uri, "bookworm-backports", ("main",), release[0].signed_by)
    run([*sudo(), "tee", str(BACKPORTS_FILE)], input_text=backports.stanza)


def installed_packages() -> set[str]:
    """Names of all installed packages; none on a host without dpkg."""
    if not shutil.which("dpkg-query"):
        return set()
    query = ["dpkg-query", "--show", "--showformat=${db:Status-Status} ${Package}\n"]
    lines = subprocess.run(query, capture_output=True, text=True).stdout.splitlines()
    return {line.split()[1] for line in lines if line.startswith("installed ")}


def runsc_release() -> int:
    """The date in `runsc --version`, such as 20240729; 0 without runsc."""
    program = shutil.which("runsc")
    if not program:
        return 0
    answer = subprocess.run([program, "--version"], capture_output=True, text=True).stdout
    match = re.search(r"\b(20\d{6})\b", answer)
    return int(match[1]) if match else 0


def qemu_release() -> tuple[int, ...]:
    """The version of this host's QEMU, such as (10, 0); empty without one."""
    program = shutil.which("qemu-system-x86_64")
    if not program:
        return ()
    answer = subprocess.run([program, "--version"], capture_output=True, text=True).stdout
    match = re.search(r"version (\d+)\.(\d+)", answer)
    return (int(match[1]), int(match[2])) if match else ()


def codename() -> str:
    """This host's Debian release, such as bookworm."""
    match = re.search(r"^VERSION_CODENAME=(\S+)", Path("/etc/os-release").read_text(), re.M)
    return match[1] if match else ""


# --- Python


def python_environment() -> None:
    """Make .venv be exactly what uv.lock says."""
    locked = (ROOT / "uv.lock").read_bytes() + (ROOT / "pyproject.toml").read_bytes()
    key = hashlib.sha256(locked).hexdigest()
    stamp = VENV / ".wardian-lock"
    if stamp.exists() and stamp.read_text() == key and (VENV / "bin/python").exists():
        compile_sources()
        done("Python packages")
        return
    with step("Python packages", "installing what uv.lock names"):
        uv = find_uv() or install_uv()
        environment = {
            "UV_PYTHON_DOWNLOADS": "never",
            "VIRTUAL_ENV": str(VENV),
            "UV_PROJECT_ENVIRONMENT": str(VENV),
        }
        index = pip_index()
        if index and not any(name in os.environ for name in ("UV_INDEX_URL", "UV_DEFAULT_INDEX", "UV_INDEX")):
            sync_from_index(uv, index, environment)
        else:
            run([uv, "sync", "--frozen", "--compile-bytecode"], environment)
        compile_sources()
        stamp.write_text(key)


def compile_sources() -> None:
    """Have our own modules compiled: a third of a server's start, where Python is told to keep nothing.

    Not what goes into images, which is copied with all that is beside it.
    """
    apart = r"/builds/builtin/|/runs/lib/"
    run([str(VENV / "bin/python"), "-m", "compileall", "-q", "-x", apart, str(ROOT / "src")])


def sync_from_index(uv: str, index: str, environment: Mapping[str, str]) -> None:
    """The same environment by way of the index that pip is told to use here; hashes are those of the lock."""
    if not (VENV / "bin/python").exists():
        run([uv, "venv", str(VENV)], environment)
    wanted = BUILD / "requirements.txt"
    run([uv, "export", "--frozen", "--no-emit-project", "--quiet", "--output-file", str(wanted)], environment)
    options = ["--default-index", index]
    run([uv, "pip", "sync", "--require-hashes", "--compile-bytecode", *options, str(wanted)], environment)
    run([uv, "pip", "install", "--no-deps", *options, "--editable", "."], environment)


def find_uv() -> str | None:
    """The host's uv, or the one an earlier set-up installed."""
    ours = BUILD / "uv/bin/uv"
    return shutil.which("uv") or (str(ours) if ours.exists() else None)


def install_uv() -> str:
    """uv in an environment of its own: the system's Python is left alone, pip's settings hold."""
    home = BUILD / "uv"
    shutil.rmtree(home, ignore_errors=True)
    python = sys.executable if importable("ensurepip") else "/usr/bin/python3"
    run([python, "-m", "venv", str(home)])
    run([str(home / "bin/pip"), "install", "--quiet", "uv"])
    return str(home / "bin/uv")


def importable(module: str) -> bool:
    """Whether this Python has ``module``; Debian splits some of the standard library off."""
    import importlib.util

    return importlib.util.find_spec(module) is not None


def pip_index() -> str:
    """The index pip is told to use on this host instead of the default; empty when there is none."""
    if url := os.environ.get("PIP_INDEX_URL"):
        return url
    for file in (os.environ.get("PIP_CONFIG_FILE"), Path.home() / ".config/pip/pip.conf", "/etc/pip.conf"):
        if file and Path(file).is_file():
            match = re.search(r"^\s*index-url\s*=\s*(\S+)", Path(file).read_text(), re.M)
            if match:
                return match[1]
    return ""


# --- what is compiled, and the image


def native_programs() -> None:
    """Compile the guest agent and the launcher; make knows what is up to date."""
    started = time.monotonic()
    with step("guest, launcher", "compiling", quiet=True):
        for directory in ("guest", "launcher"):
            run(["make", "--no-print-directory", "-C", str(ROOT / directory)])
    done("guest, launcher", time.monotonic() - started)


def guest_kernel() -> None:
    """Fetch Debian's cloud kernel for microVMs and take it apart; it is not installed."""
    kernels = Catalog().cache / "kernels"
    if any(kernels.glob("*/release")):
        done("guest kernel")
        return
    if not shutil.which("apt-get"):
        raise SetupError("this is not a Debian: name a guest kernel of your own to the server")
    with step("guest kernel", "fetching and unpacking it"):
        directory = BUILD / "kernel"
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir()
        run(["apt-get", *backports_release(), "download", kernel_package()], directory=directory)
        (package,) = directory.glob("*.deb")
        run([str(VENV / "bin/python"), str(ROOT / "scripts/kernel.py"), str(package), str(kernels)])
        shutil.rmtree(directory)


def kernel_package() -> str:
    """The package that Debian's name for its newest cloud kernel stands for."""
    query = ["apt-cache", *backports_release(), "depends", KERNEL_PACKAGE]
    answer = subprocess.run(query, capture_output=True, text=True).stdout
    match = re.search(r"Depends: (linux-image-\S+-cloud-amd64)$", answer, re.M)
    if not match:
        raise SetupError(f"apt does not know {KERNEL_PACKAGE}: run apt-get update, then this again")
    return match[1]


def micro_vms() -> None:
    """Try what runs microVMs here, KVM or the emulator; servers remember it until the host starts again."""
    if os.geteuid() != 0:
        return  # only root makes machines: its first server tries it
    programs = (
        ROOT / "guest/build/wardian-init",
        ROOT / "guest/build/wardian-guest",
        ROOT / "launcher/build",
    )
    boot = Path("/proc/sys/kernel/random/boot_id").read_text()
    key = f"{boot}{qemu_release()} {[path.stat().st_mtime_ns for path in programs]}"
    stamp = BUILD / "microvms.tried"
    if stamp.exists() and stamp.read_text() == key:
        done("microVMs")
        return
    with step("microVMs", "trying KVM and the emulator"):
        run([str(VENV / "bin/python"), str(ROOT / "scripts/probe.py")])
    stamp.write_text(key)


def base_image() -> None:
    """Build the base image, unless this recipe's is already there."""
    if Catalog().find(base_recipe()):
        done("base image")
        return
    say(f"· {'base image':{WIDTH}}building\n")
    command = [str(VENV / "bin/wardian"), "template", "build", "base"]
    if subprocess.run(command, cwd=ROOT).returncode:
        raise SetupError("the base image could not be built (its reasons are above)")
    done("base image")


# --- saying and running


def say(text: str) -> None:
    """Write to standard error, at once."""
    sys.stderr.write(text)
    sys.stderr.flush()


def done(name: str, seconds: float = 0) -> None:
    """One line: this step is done."""
    say(f"✓ {name:{WIDTH}}{f'{seconds:.1f} s' if seconds >= 1 else 'ready'}\n")


@contextmanager
def step(name: str, doing: str, *, quiet: bool = False) -> Iterator[None]:
    """Show that something is going on: a running clock on a terminal, one line otherwise."""
    started = time.monotonic()
    over = threading.Event()
    columns = shutil.get_terminal_size().columns - 1

    def tick() -> None:
        while not over.wait(0.5):
            line = f"· {name:{WIDTH}}{time.monotonic() - started:.0f} s  {doing}"
            say(f"\r\x1b[K{line[:columns]}")

    clock = threading.Thread(target=tick, daemon=True)
    if sys.stderr.isatty():
        clock.start()
    elif not quiet:
        say(f"· {name:{WIDTH}}{doing}\n")
    try:
        yield
    finally:
        over.set()
        if clock.is_alive():
            clock.join()
        if sys.stderr.isatty():
            say("\r\x1b[K")
    if not quiet:
        done(name, time.monotonic() - started)


def run(
    command: Sequence[str],
    environment: Mapping[str, str] | None = None,
    *,
    input_text: str = "",
    directory: Path = ROOT,
) -> None:
    """Run a command with its output in the log; on failure show the end of what it said."""
    with LOG.open("a") as log:
        log.write(f"\n$ {' '.join(command)}\n")
        log.flush()
        begin = log.tell()
        full = {**os.environ, **(environment or {})}
        process = subprocess.Popen(
            command,
            cwd=directory,
            env=full,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            text=True,
        )
        process.communicate(input_text)
    if process.returncode:
        last = LOG.read_text(errors="replace")[begin:].strip().splitlines()[-25:]
        raise SetupError(f"`{' '.join(command)}` failed:\n  " + "\n  ".join(last) + f"\n(all of it: {LOG})")


def sudo(environment: Mapping[str, str] | None = None) -> list[str]:
    """What to put before a command that must be root's; sudo drops variables, so they go on its line."""
    if os.geteuid() == 0:
        return []
    return ["sudo", *(f"{name}={value}" for name, value in (environment or {}).items())]


if __name__ == "__main__":
    sys.exit(main())
