"""The root file system of the ``base`` template: a small Debian with what agents reach for first.

It is built from Debian's own packages by ``mmdebstrap``, from the mirror this very host uses, with the
host's proxy and certificate settings; no image registry is needed. Everything that could differ between two
builds of the same packages (time stamps, caches, logs, bytecode) is removed or made again in one fixed way.

The guest agent is not in here: whatever boots a machine brings it along.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import subprocess
import tarfile
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

from wardian.images import debian, packages
from wardian.images.erofs import TIMESTAMP
from wardian.model.errors import Unavailable, WardianError

Report = Callable[[str, float], None]
"""Told what is being done and how far the whole is, from 0 to 1."""

STAGES = (
    ("running apt-get update", "fetching package lists", 0.04),
    ("downloading packages", "downloading packages", 0.10),
    ("extracting archives", "unpacking", 0.22),
    ("installing essential", "installing the essential packages", 0.28),
    ("installing remaining", "installing the other packages", 0.40),
    ("running --customize-hook", "settling users, caches and bytecode", 0.66),
    ("cleaning package lists", "cleaning up", 0.76),
    ("creating tarball", "packing", 0.80),
)
"""mmdebstrap's own progress lines, our words for them, and where the build then is (measured on 2 cores)."""

EXCLUDED = (
    "/usr/share/man/*",
    "/usr/share/info/*",
    "/usr/share/locale/*",
    "/usr/share/doc/*",
    "/usr/share/lintian/*",
)
PREFERENCES = "/etc/apt/preferences.d/wardian"
LAST_WORDS = 15
INCLUDED = ("/usr/share/doc/*/copyright", "/usr/share/locale/locale.alias")


@dataclass(frozen=True, slots=True)
class ExtraFile:
    """Something put into an image beside its packages: a file, a directory (no ``content``) or a symlink."""

    content: bytes | None = None
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    link: str | None = None


PROFILE = b"""\
# Kept short: every file opened at log-in costs each command a fraction of a millisecond.
export LANG=C.UTF-8
: "${PATH:=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin}"
if [ -n "$PS1" ] && [ -r ~/.bashrc ]; then . ~/.bashrc; fi
"""

BASHRC = b"""\
case $- in *i*) ;; *) return ;; esac
PS1='\\[\\e[32m\\]\\u@\\h\\[\\e[0m\\]:\\[\\e[34m\\]\\w\\[\\e[0m\\]\\$ '
HISTCONTROL=ignoredups
shopt -s checkwinsize
alias ls='ls --color=auto' ll='ls -l' grep='grep --color=auto'
"""

HOSTS = b"127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n"

BASE_FILES: Mapping[str, ExtraFile] = {
    "code": ExtraFile(mode=0o777),
    "etc/hostname": ExtraFile(b"wardian\n"),
    "etc/hosts": ExtraFile(HOSTS),
    # Any address will do: the guest agent takes every DNS question, and the host answers or refuses it.
    "etc/resolv.conf": ExtraFile(b"nameserver 8.8.8.8\n"),
    "etc/machine-id": ExtraFile(b"", mode=0o444),
    "etc/default/locale": ExtraFile(b"LANG=C.UTF-8\n"),
    "etc/profile": ExtraFile(PROFILE),
    "etc/sudoers.d/user": ExtraFile(b"user ALL=(ALL:ALL) NOPASSWD: ALL\n", mode=0o440),
    "home/user/.bashrc": ExtraFile(BASHRC, uid=1000, gid=1000),
    "home/user/.bash_profile": ExtraFile(b"", uid=1000, gid=1000),  # found first
    "root/.bashrc": ExtraFile(BASHRC),
    "root/.bash_profile": ExtraFile(b""),
    "usr/bin/python": ExtraFile(link="python3"),
    # Debian's own cannot work where set-user-ID bits mean nothing; others may depend on its package.
    "usr/bin/sudo": ExtraFile(
        resources.files(__package__).joinpath("guest_sudo.py").read_bytes(), mode=0o755
    ),
}

SUITE = "bookworm"
BASE_PACKAGES = (
    "bash-static",
    "ca-certificates",
    "curl",
    "git",
    "iproute2",
    "less",
    "netcat-openbsd",
    "procps",
    "python3",
    "python3-pip",
    "python3-venv",
    "sudo",
    "unzip",
    "xz-utils",
)


@dataclass(frozen=True, slots=True)
class Recipe:
    """All that decides what an image holds, except the state of the archive on the day it is built.

    ``customise`` is a shell script that mmdebstrap runs with the root directory as its first argument.
    """

    name: str
    suite: str
    packages: tuple[str, ...]
    customise: str
    files: Mapping[str, ExtraFile] = field(default_factory=dict)

    @property
    def packages_key(self) -> str:
        """Cache key of the package layer: equal keys need no second run of mmdebstrap."""
        what = {
            "suite": self.suite,
            "packages": sorted(self.packages),
            "customise": self.customise,
            "excluded": EXCLUDED,
            "included": INCLUDED,
            "timestamp": TIMESTAMP,
            "arch": os.uname().machine,
        }
        return _key(what)

    @property
    def key(self) -> str:
        """Cache key of the whole image."""
        return _key({"packages": self.packages_key, "files": repr(sorted(self.files.items()))})


def base_recipe() -> Recipe:
    """The recipe of ``base``."""
    return debian_recipe("base", SUITE)


def debian_recipe(name: str, suite: str, extra: Iterable[str] = ()) -> Recipe:
    """A Debian with all that ``base`` has, and the packages ``extra`` (``name``, or ``name=version``).

    Raises :class:`Invalid` for what can be no package.
    """
    extra = tuple(extra)
    packages.check_names(suite, extra)
    return Recipe(
        name=name,
        suite=suite,
        packages=packages.merged(BASE_PACKAGES, extra),
        customise=resources.files(__package__).joinpath("customise.sh").read_text(),
        files=BASE_FILES,
    )


def as_root() -> tuple[str, ...]:
    """What to put before a command that must see itself as root: nothing for root, else a user namespace."""
    return () if os.geteuid() == 0 else ("unshare", "--user", "--map-auto", "--map-root-user", "--")


def build_packages(recipe: Recipe, out: Path, report: Report) -> dict[str, str]:
    """Run mmdebstrap: the recipe's packages, customised, as the tar file ``out``. Takes half a minute.

    Returns the digests of the archives they came in, by package. Raises :class:`Unavailable` when this host
    names no Debian archive, :class:`NotFound` for a package or version that is not in it, WardianError when
    mmdebstrap fails.
    """
    sources = debian.archive(debian.host_sources(), recipe.suite, host_codename())
    if not sources:
        raise Unavailable(
            f"no source of Debian {recipe.suite} in /etc/apt",
            code="no_debian_archive",
            hint=f"add one, such as /etc/apt/sources.list.d/debian.sources with suite {recipe.suite}",
        )
    pinned = packages.pins(recipe.packages)
    with tempfile.TemporaryDirectory(prefix="wardian-packages-") as directory:
        place = Path(directory)
        place.chmod(0o755)
        hooks = {
            "archives.sh": packages.LIST_ARCHIVES,
            "customise.sh": recipe.customise,
            "preferences": packages.preferences(pinned),
            "sources.list": "".join(source.line + "\n" for source in sources),
        }
        for name, text in hooks.items():
            (place / name).write_text(text)
        command = [
            "mmdebstrap",
            "--variant=minbase",
            "--format=tar",
            *(f"--include={package}" for package in recipe.packages),
            *(f"--dpkgopt=path-exclude={pattern}" for pattern in EXCLUDED),
            *(f"--dpkgopt=path-include={pattern}" for pattern in INCLUDED),
            *(f"--aptopt={option}" for option in debian.network_options()),
            f"--setup-hook=upload {place}/preferences {PREFERENCES}",
            f'--customize-hook=sh {place}/archives.sh "$1"',
            f"--customize-hook=download /tmp/archives {place}/archives",
            f'--customize-hook=rm "$1/tmp/archives" "$1{PREFERENCES}"',
            f'--customize-hook=sh {place}/customise.sh "$1"',
            recipe.suite,
            str(out),
            f"{place}/sources.list",
        ]
        if failure := _run_with_stages(command, report):
            raise packages.explain(failure, recipe.suite, sources) or WardianError(
                "mmdebstrap failed:\n  " + "\n  ".join(failure[-LAST_WORDS:]),
                code="image_build_failed",
                hint="can this host reach its Debian mirror?",
            )
        installed = installed_packages(out)
        packages.check_kept(pinned, installed, recipe.suite)
        return packages.read_archives((place / "archives").read_text(), installed)


def installed_packages(layer: Path) -> dict[str, str]:
    """Names and versions of the packages in a package layer."""
    with tarfile.open(layer) as tar:
        file = tar.extractfile("./var/lib/dpkg/status")
        assert file is not None
        return packages_in(file.read().decode())


def packages_in(status: str) -> dict[str, str]:
    """Names and versions of the packages in dpkg's status file."""
    found = re.findall(r"^Package: (\S+)$.*?^Version: (\S+)$", status, flags=re.M | re.S)
    return dict(sorted(found))


def unpack(layer: Path, files: Mapping[str, ExtraFile], tree: Path) -> None:
    """Make the empty directory ``tree`` the recipe's root: the package layer with ``files`` laid over it."""
    extract = [
        *as_root(),
        "tar",
        "--extract",
        "--preserve-permissions",
        "--numeric-owner",
        "--directory",
        str(tree),
    ]
    # A machine brings its own /dev, and only the real root may make device nodes.
    subprocess.run([*extract, "--exclude=./dev/*", "--file", str(layer)], check=True)
    subprocess.run([*extract, "--unlink-first", "--file=-"], input=extra_tar(files), check=True)


def extra_tar(files: Mapping[str, ExtraFile]) -> bytes:
    """``files``, by path, as a tar."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for path, file in sorted(files.items()):
            info = tarfile.TarInfo(path.lstrip("/"))
            info.mode, info.uid, info.gid, info.mtime = file.mode, file.uid, file.gid, TIMESTAMP
            if file.link is not None:
                info.type, info.linkname = tarfile.SYMTYPE, file.link
                tar.addfile(info)
            elif file.content is None:
                info.type = tarfile.DIRTYPE
                tar.addfile(info)
            else:
                info.size = len(file.content)
                tar.addfile(info, io.BytesIO(file.content))
    return buffer.getvalue()


def _run_with_stages(command: Sequence[str], report: Report) -> Sequence[str]:
    """Run mmdebstrap and follow its progress. Its last words if it failed, else nothing."""
    environment = {**os.environ, "SOURCE_DATE_EPOCH": str(TIMESTAMP), "LC_ALL": "C.UTF-8"}
    last: deque[str] = deque(maxlen=200)
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            last.append(line.rstrip())
            for begins, words, fraction in STAGES:
                if begins in line:
                    report(words, fraction)
    return list(last) if process.returncode else ()


def host_codename() -> str:
    """This host's Debian release, such as bookworm; empty on another system."""
    match = re.search(r"^VERSION_CODENAME=(\S+)", Path("/etc/os-release").read_text(), flags=re.M)
    return match[1] if match else ""


def _key(what: object) -> str:
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()
