"""``kill -9`` of the server while programs use a volume: they wait, and go on, and nothing is lost."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from e2b import Sandbox, Volume
from tests.acceptance.conftest import STOP_S, Server, serve, stop

COUNT = """
exec 5>>log 6<>gone
rm gone
for ((i = 1; ; i++)); do echo $i >&5; echo $i > last; echo y >&6; done
"""
GROWN = "n=$(wc -l < log); while [ $(wc -l < log) -le $((n + 10)) ]; do :; done"


class Killable:
    """A server that is killed and started again on the same data."""

    def __init__(self, data: Path, patch: pytest.MonkeyPatch) -> None:
        self._data, self._patch = data, patch
        self.server = self._start()

    def _start(self) -> Server:
        server = serve(self._data)
        for name in ("E2B_API_URL", "E2B_SANDBOX_URL", "E2B_VOLUME_API_URL"):
            self._patch.setenv(name, server.url)
        self._patch.setenv("E2B_API_KEY", server.key)
        return server

    def kill(self) -> None:
        self.server.process.send_signal(signal.SIGKILL)
        self.server.process.wait(STOP_S)
        assert self.server.process.stdout is not None
        self.server.process.stdout.close()

    def kill_and_start(self) -> None:
        self.kill()
        self.server = self._start()


@pytest.fixture
def killable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Killable]:
    killable = Killable(tmp_path, monkeypatch)
    yield killable
    stop(killable.server)


def test_programs_in_a_volume_outlive_the_server(killable: Killable, tmp_path: Path) -> None:
    volume = Volume.create("data")
    sandbox = Sandbox.create(volume_mounts={"/v": volume}, timeout=300)
    process = sandbox.commands.run(COUNT, cwd="/v", background=True)
    for _ in range(2):
        sandbox.commands.run(GROWN, cwd="/v")
        killable.kill_and_start()
        sandbox = Sandbox.connect(sandbox.sandbox_id)
    sandbox.commands.run(GROWN, cwd="/v")
    sandbox.commands.run(f"kill {process.pid}")
    lines = [int(line) for line in Volume.connect(volume.volume_id).read_file("/log").split()]
    # What the dead server had carried out but not answered is asked again: at most one line per death is
    # there twice, and none is missing.
    assert sorted(set(lines)) == list(range(1, max(lines) + 1))
    assert len(lines) - len(set(lines)) <= 2
    sandbox.kill()
    assert Volume.destroy(volume.volume_id)
    assert list((tmp_path / "volumes").iterdir()) == []


def test_an_agent_that_waits_for_a_volume_is_still_taken_over(killable: Killable) -> None:
    """The agent does file operations itself. One that the death of the server cuts off must not keep it from
    answering the next server, which alone can bring the volume back."""
    sandbox = Sandbox.create(volume_mounts={"/v": Volume.create("data")}, timeout=300)
    sandbox.commands.run("mkdir many; for i in {1..400}; do : > many/$i; done", cwd="/v")

    def listing() -> None:
        with contextlib.suppress(Exception):  # the server dies under it
            while True:
                sandbox.files.list("/v/many")

    busy = threading.Thread(target=listing)
    busy.start()
    sandbox.commands.run("sleep 0.3")
    killable.kill()
    busy.join()
    killable.server = killable._start()
    again = Sandbox.connect(sandbox.sandbox_id)
    assert len(again.files.list("/v/many")) == 400
    again.kill()
