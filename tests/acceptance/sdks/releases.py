"""The releases of the official clients that this server is tested with, and where they are installed.

Each gets a place of its own under ``build/sdks``, once. ``lacks`` are the steps of the tour for which a
release has no call, ``lacks_of_templates`` those of the tour of templates. ``short`` ones are driven by the
default suite, all by ``make test-sdks``.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.acceptance.conftest import Server

SDKS = Path(__file__).parent
REPOSITORY = Path(__file__).resolve().parents[3]
INSTALLED = REPOSITORY / "build" / "sdks"
SEARCH = os.pathsep.join((str(REPOSITORY / "build/uv/bin"), os.environ.get("PATH", "")))
HOST = dict(os.environ)
"""How the host reaches its indexes, whatever proxy or authority a test sets for its own server later."""
INSTALL_S, DRIVE_S = 100, 100

OLD = frozenset({"file metadata", "fork"})
OLDER = OLD | {"network rules"}
OLDEST = OLDER | {"git", "snapshot"}
NO_NAMES = frozenset({"names", "tags"})


@dataclass(frozen=True, slots=True)
class Release:
    """One release of one client."""

    package: str
    version: str
    language: str = "python"
    short: bool = False
    lacks: frozenset[str] = frozenset()
    lacks_of_templates: frozenset[str] = frozenset()

    @property
    def name(self) -> str:
        return f"{self.package} {self.version}"

    @property
    def place(self) -> Path:
        """Where it is installed."""
        prefix = "" if self.language == "python" else "node-"
        return INSTALLED / f"{prefix}{self.package.replace('@', '').replace('/', '-')}-{self.version}"

    def installed(self) -> Path:
        """Its place, after installing it if need be; where that cannot be done, the test is skipped."""
        if not self.place.exists():
            if self.language == "python":
                _install(
                    self.place,
                    ("uv", "venv", "--quiet", "--python", sys.executable, "."),
                    (
                        "uv",
                        "pip",
                        "install",
                        "--quiet",
                        "--python",
                        "bin/python",
                        f"{self.package}=={self.version}",
                    ),
                )
            else:
                command = ("npm", "install", "--silent", "--no-audit", "--no-fund")
                _install(self.place, (*command, f"{self.package}@{self.version}"))
        return self.place


RELEASES = (
    Release("e2b", "2.63.0", short=True),
    Release("e2b", "2.51.0"),  # the first that speaks the control plane's second version
    Release("e2b", "2.45.1", short=True),
    Release("e2b", "2.38.0"),
    Release("e2b", "2.26.0", lacks=OLD),
    Release("e2b", "2.20.3", lacks=OLDER),
    Release(
        "e2b", "2.10.2", lacks=OLDER | {"git", "snapshot"}, lacks_of_templates=frozenset({"names", "tags"})
    ),
    Release("agentsphere", "3.0.0", short=True, lacks=OLDER),
    Release("e2b", "2.51.0", "javascript", short=True),
    Release("e2b", "2.45.0", "javascript", short=True),
    Release("@e2b/cli", "2.19.0", "command line", short=True),
    Release("@e2b/cli", "2.16.0", "command line"),
)

INTERPRETER = Release("@e2b/code-interpreter", "2.8.0", "javascript")
DESKTOP = Release("@e2b/desktop", "2.4.0", "javascript")
"""What these drive are the built-in templates, not the tour."""


def release(package: str, version: str, language: str = "python") -> Release:
    """The one of the table with these names."""
    return next(r for r in RELEASES if (r.package, r.version, r.language) == (package, version, language))


def of(*languages: str, short: Callable[[Release], bool] = lambda each: each.short) -> list[object]:
    """The releases in these languages, as parameters; those that are not short are for ``make test-sdks``."""
    return [
        pytest.param(release, id=release.name, marks=() if short(release) else pytest.mark.sdks)
        for release in RELEASES
        if release.language in languages
    ]


def is_newest(release: Release) -> bool:
    """Whether it is the newest one of its client in its language."""
    return release == next(
        each for each in RELEASES if (each.package, each.language) == (release.package, release.language)
    )


def environment(server: Server) -> Mapping[str, str]:
    """The variables that lead every client to a server."""
    settings = {"API_URL": server.url, "SANDBOX_URL": server.url, "API_KEY": server.key}
    brands = ("E2B", "AGENTSPHERE")
    return dict(os.environ) | {f"{brand}_{key}": value for brand in brands for key, value in settings.items()}


def run_beside(release: Release, program: Path, env: Mapping[str, str], timeout: float = DRIVE_S) -> str:
    """What ``program`` says, run where a JavaScript client is installed: node looks beside the file."""
    copied = shutil.copy(program, release.installed())
    return run_program("node", str(copied), env=env, timeout=timeout)


def run_program(*command: str, env: Mapping[str, str], timeout: float = DRIVE_S) -> str:
    """What a program that drives a client wrote; it must succeed."""
    done = subprocess.run(
        command,
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def _install(place: Path, *commands: tuple[str, ...]) -> None:
    """Run ``commands`` in a new directory that becomes ``place`` when all went well; else skip the test."""
    draft = place.with_name(place.name + ".part")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    for name, *arguments in commands:
        program = shutil.which(name, path=SEARCH)
        if program is None:
            pytest.skip(f"{name} is not installed here")
        done = subprocess.run(
            (program, *arguments),
            cwd=draft,
            env=HOST,
            capture_output=True,
            text=True,
            timeout=INSTALL_S,
            check=False,
        )
        if done.returncode:
            pytest.skip(f"{place.name} cannot be installed here: {done.stderr.strip()[-300:]}")
    draft.rename(place)
