"""`make demo` keeps what it promises."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 110


def test_the_demo_runs_and_leaves_nothing() -> None:
    """Create, run, pause, kill -9 of the server, resume on the same process, fork, stop; it checks itself."""
    done = subprocess.run(
        [sys.executable, ROOT / "examples/demo.py"], capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert "the same process" in done.stdout
    assert "No process, control group, mount or machine file of this demo is left." in done.stdout
