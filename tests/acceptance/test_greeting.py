"""What ``wardian serve`` prints for people is all that a client needs."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.acceptance.conftest import STOP_S
from tests.acceptance.sdks.releases import run_program

CLIENT = """
from e2b import Sandbox, Volume
volume = Volume.create("greeted")
volume.write_file("/notes.txt", "hello")
with Sandbox.create(timeout=60, volume_mounts={"/mnt": volume}) as sandbox:
    print(sandbox.commands.run("cat /mnt/notes.txt").stdout)
Volume.destroy(volume.volume_id)
"""


@pytest.fixture
def said(tmp_path: Path) -> Iterator[str]:
    """The greeting, up to its last line."""
    wardian = Path(sys.executable).with_name("wardian")
    with (tmp_path / "server.log").open("w") as log:
        process = subprocess.Popen(
            [wardian, "serve", "--port", "0", "--data", tmp_path / "data"],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith("Ctrl-C"):
            break
    try:
        yield "".join(lines)
    finally:
        process.send_signal(signal.SIGTERM)
        process.stdout.close()
        process.wait(STOP_S)


def test_the_variables_that_are_printed_are_enough(said: str) -> None:
    variables = dict(re.findall(r"^  export (\w+)=(\S+)$", said, re.MULTILINE))
    others = {name: value for name, value in os.environ.items() if not name.startswith("E2B_")}
    assert run_program(sys.executable, "-c", CLIENT, env=others | variables) == "hello\n"
