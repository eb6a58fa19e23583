"""`make demo` keeps what it promises."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 170

pytestmark = pytest.mark.timeout(180)


@pytest.mark.parametrize(
    "options", [("--at-once",), pytest.param((), marks=pytest.mark.slow)], ids=["at once", "by the clock"]
)
def test_the_demo_runs_and_leaves_nothing(options: tuple[str, ...]) -> None:
    """An agent at work, a sandbox paused, kill -9 of the server, and both go on; it checks itself."""
    command = [sys.executable, "-m", "examples.demo", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert "the same process" in done.stdout
    assert "3 answers of the model and 1 headline, once each" in done.stdout
    assert "by runner 2.0, in the same frozen environment" in done.stdout
    assert "No process, control group, mount or machine file of this demo is left." in done.stdout
