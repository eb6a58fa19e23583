"""What the README shows works, word for word."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from e2b import Sandbox
from tests.acceptance.conftest import Server
from typer.testing import CliRunner

from wardian.cli.main import app

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 250


def example() -> str:
    """The README's first block of Python."""
    block = re.search(r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(), re.M | re.S)
    assert block, "the README has no example"
    return block[1]


def test_the_first_example_runs(server: Server) -> None:
    """Against a real server, with nothing set but what `wardian serve` prints."""
    done = subprocess.run(
        [sys.executable, "-c", example()],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "the sandbox says 42\n"


def test_the_quickstart_is_that_example() -> None:
    """One text in two places, kept equal."""
    assert (ROOT / "examples/quickstart.py").read_text().endswith(example())


def test_the_commands_it_shows_run(server: Server, tmp_path: Path) -> None:
    """The whole life of a sandbox on the command line, but for the terminal, which wants a person."""
    block = re.search(r"^```sh\n(wardian doctor.*?)^```$", (ROOT / "README.md").read_text(), re.M | re.S)
    assert block, "the README shows no commands"
    lines = [line for line in block[1].splitlines() if "sandbox shell" not in line]
    (tmp_path / "project").mkdir()
    (tmp_path / "project/main.py").touch()
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    wardian = f'wardian() {{ {sys.executable} -m wardian.cli.main "$@"; }}'
    script = "\n".join(["set -e", wardian, *lines, "echo $id"])
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=tmp_path,
        env=os.environ | {"WARDIAN_DATA": str(server.data)},  # for those that need no server
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    for sandbox_id in set(re.findall(r"^i[a-z0-9]{19}$", done.stdout, re.M)):
        Sandbox.kill(sandbox_id)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert "\n42\n" in done.stdout


def test_the_commands_it_names_exist() -> None:
    """Every `make` target and `wardian` command of the README."""
    readme, makefile = (ROOT / "README.md").read_text(), (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"^make (\w+)", readme, re.M)):
        assert re.search(rf"^{target}:", makefile, re.M), f"there is no make {target}"
    for command in set(
        re.findall(r"\bwardian ((?:serve|doctor|sandbox|template|key|agent|run)(?: [a-z]+)?)", readme)
    ):
        words = [word for word in command.split() if word not in ("on", "and", "prints")]
        assert CliRunner().invoke(app, [*words, "--help"]).exit_code == 0, f"there is no wardian {command}"
