"""The versions of the official SDKs that this server is for, each driven through the same life of a sandbox.

The newest one is a dependency of ours and runs in this process. The others are installed, once, into places
of their own under ``build/sdks``; where that is not possible they are skipped, with the reason.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from tests.acceptance.conftest import Server
from tests.acceptance.sdks.drive import drive

HERE = Path(__file__).parent / "sdks"
REPOSITORY = Path(__file__).resolve().parents[2]
INSTALLED = REPOSITORY / "build" / "sdks"
SEARCH = os.pathsep.join((str(REPOSITORY / "build/uv/bin"), os.environ.get("PATH", "")))

TOUR = ["create", "commands", "files", "pause and resume", "fork", "snapshot", "list", "network", "kill"]
INSTALL_S, DRIVE_S = 100, 60


def test_the_newest_sdk_is_the_one_we_depend_on(server: Server) -> None:
    """2.63 speaks the second version of the control plane."""
    assert version("e2b") == "2.63.0"
    assert drive("e2b") == TOUR


@pytest.mark.parametrize(
    ("package", "release", "without"),
    [
        ("e2b", "2.45.1", ()),  # the last that speaks the control plane's first version
        ("agentsphere", "3.0.0", ("fork", "network")),  # the fork of it, under names of its own
    ],
)
def test_older_sdks(server: Server, package: str, release: str, without: tuple[str, ...]) -> None:
    python = _python_with(package, release)
    finished = _run(str(python), str(HERE / "drive.py"), package, env=_environment(server))
    assert json.loads(finished.splitlines()[-1]) == [step for step in TOUR if step not in without]


def test_the_javascript_sdk(server: Server) -> None:
    directory = _node_with("e2b", "2.51.0")
    shutil.copy(HERE / "drive.mjs", directory)  # node looks for packages beside the file that asks
    finished = _run("node", str(directory / "drive.mjs"), env=_environment(server))
    assert json.loads(finished.splitlines()[-1]) == TOUR


def _environment(server: Server) -> dict[str, str]:
    settings = {"API_URL": server.url, "SANDBOX_URL": server.url, "API_KEY": server.key}
    brands = ("E2B", "AGENTSPHERE")
    return dict(os.environ) | {f"{brand}_{key}": value for brand in brands for key, value in settings.items()}


def _run(*command: str, env: dict[str, str]) -> str:
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=DRIVE_S, check=False)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def _python_with(package: str, release: str) -> Path:
    place = INSTALLED / f"{package}-{release}"
    if not place.exists():
        _install(
            place,
            ("uv", "venv", "--quiet", "--python", sys.executable, "."),
            ("uv", "pip", "install", "--quiet", "--python", "bin/python", f"{package}=={release}"),
        )
    return place / "bin/python"


def _node_with(package: str, release: str) -> Path:
    place = INSTALLED / f"node-{package}-{release}"
    if not place.exists():
        _install(place, ("npm", "install", "--silent", "--no-audit", "--no-fund", f"{package}@{release}"))
    return place


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
            (program, *arguments), cwd=draft, capture_output=True, text=True, timeout=INSTALL_S, check=False
        )
        if done.returncode:
            pytest.skip(f"{place.name} cannot be installed here: {done.stderr.strip()[-300:]}")
    draft.rename(place)
