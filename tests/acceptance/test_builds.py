"""Templates from manifests: built by the command line on a real server, used by the SDK."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from e2b import Sandbox
from tests.acceptance.conftest import Server
from tests.acceptance.templates import build, image_of, wardian

from wardian.images.indexes import PLACE, host_indexes

pytestmark = pytest.mark.timeout(300)

EXAMPLE = Path(__file__).parents[2] / "examples" / "template-dockerfile"


def test_a_dockerfile_becomes_a_template_that_is_running_already(server: Server, tmp_path: Path) -> None:
    place = tmp_path / "www"
    shutil.copytree(EXAMPLE, place)
    (place / "secret.txt").write_text("not for the image")
    with (place / "Dockerfile").open("a") as file:
        file.write("COPY . /srv/all\n")
    told = build(server, place, "--build-arg", "GREETING=servus", "--memory", "640", "--tag", "v1")
    assert told["warm"]
    sandbox = Sandbox.create("www:v1", timeout=120)
    try:
        ran = sandbox.commands.run(
            "cat /proc/*/cmdline | tr '\\0' ' '; curl -s localhost:8000; id -un; pwd; ls -A /srv/all"
        )
        assert "http.server" in ran.stdout
        assert ran.stdout.endswith("Hello from Wardian.\nuser\n/srv/www\npage.txt\n")
        assert sandbox.commands.run("cat greeting.txt; echo $PORT").stdout == "servus\n8000\n"
        assert sandbox.get_info().memory_mb == 640
        # Whatever the working directory is, relative paths are taken from the user's home.
        assert sandbox.files.write("a/b.txt", "").path == "/home/user/a/b.txt"
        assert sandbox.commands.run("pwd", cwd="a").stdout == "/home/user/a\n"
    finally:
        sandbox.kill()
    again = wardian(server, "build", str(place), "--build-arg", "GREETING=servus", "--memory", "640")
    assert again.returncode == 0, again.stderr
    said = again.stderr.splitlines()
    assert not [line for line in said if " RUN " in line and "CACHED" not in line]
    explained = wardian(server, "explain", "www:v1", "www")
    assert (explained.returncode, explained.stdout.count("became")) == (0, 0), explained.stdout
    other = wardian(server, "explain", "www", "base")
    assert other.returncode == 1
    assert "environment: PORT: 8000 became nothing" in other.stdout


def test_a_failing_step_says_where_and_what(server: Server, tmp_path: Path) -> None:
    """Once, in this order: the command and how it ended, the step and its line, the last it said."""
    (tmp_path / "Dockerfile").write_text("FROM base\n\nRUN echo one; \\\n  echo two >&2; exit 7\n")
    done = wardian(server, "build", str(tmp_path), "--name", "failing")
    assert (done.returncode, done.stdout) == (1, "")
    said = [
        "failed to run command 'echo one;   echo two >&2; exit 7': exit status 7",
        "in step 3/5, line 3: RUN echo one; echo two >&2; exit 7",
        "the last it said:",
        "  one",
        "  two",
    ]
    assert done.stderr.splitlines()[-5:] == [f"error: {said[0]}", *said[1:]]
    assert done.stderr.count("exit status 7") == 1
    told = wardian(server, "build", str(tmp_path), "--name", "failing", "--json")
    assert (told.returncode, told.stdout) == (1, "")
    error = {"code": "build_failed", "message": "\n".join(said), "hint": None}
    assert json.loads(told.stderr) == {"error": error}
    (tmp_path / "Dockerfile").write_text("FROM base\nCMD echo dying; exit 9\n")
    dead = wardian(server, "build", str(tmp_path), "--name", "failing")
    assert "error: the start command failed: echo dying; exit 9: exit status 9" in dead.stderr.splitlines()
    assert dead.stderr.splitlines()[-1] == "  dying"
    (tmp_path / "Dockerfile").write_text("FROM base\nVOLUME /x\n")
    refused = wardian(server, "build", str(tmp_path), "--name", "failing")
    assert (refused.returncode, "Dockerfile:2" in refused.stderr) == (2, True)


def test_the_same_lock_gives_the_same_bytes_and_no_secret_stays(server: Server, tmp_path: Path) -> None:
    (tmp_path / "wardian.toml").write_text(
        '[template]\nname = "locked"\n[[step]]\nuser = "root"\n'
        "[[step]]\nrun = 'pip install --break-system-packages six==1.16.0 && date > /var/log/now.log "
        "&& env > /root/env'\n"
        '[[step]]\nrun = "sed -i /^_=/d /root/env"\n'
        '[[step]]\ncopy = "own.py"\nto = "/opt/own.py"\nmode = "755"\n[[step]]\nuser = "user"\n'
    )
    (tmp_path / "own.py").write_text("import six\n")
    first = build(server, tmp_path)
    (tmp_path / "own.py").touch()
    second = build(server, tmp_path, "--no-cache", "--locked")
    assert (second["tree"], second["image"]) == (first["tree"], first["image"])
    lock = json.loads((tmp_path / "wardian.lock").read_text())
    assert lock["packages"]["python"]["six"] == "1.16.0"
    bytes_of_it = image_of(server, first["image"]).read_bytes()
    bundle = host_indexes().files.get("ca.pem", b"")
    assert bundle[-400:] not in bytes_of_it or bundle[-400:] in _base_bytes(server)
    (tmp_path / "own.py").write_text("import this\n")
    broken = wardian(server, "build", str(tmp_path), "--locked")
    assert broken.returncode == 1
    assert "COPY copy own.py" in broken.stderr
    assert PLACE.encode() not in bytes_of_it.replace(b"=" + PLACE.encode(), b"")


def _base_bytes(server: Server) -> bytes:
    told = json.loads(wardian(server, "inspect", "base", "--json").stdout)
    return image_of(server, told["image"]).read_bytes()


def test_a_python_project_brings_its_dependencies(server: Server, tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text(
        '[project]\nname = "p"\nversion = "1"\nrequires-python = ">=3.11"\ndependencies = ["six"]\n'
    )
    (tmp_path / "main.py").write_text("import six\nprint(six.__name__)\n")
    build(server, tmp_path, "--name", "project")
    sandbox = Sandbox.create("project", timeout=120)
    try:
        assert sandbox.commands.run("python main.py; pwd").stdout == "six\n/home/user/app\n"
    finally:
        sandbox.kill()
