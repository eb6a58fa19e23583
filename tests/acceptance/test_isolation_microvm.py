"""A real microVM beside gVisor on one server, with the unmodified SDK: emulated where no KVM works."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from e2b import Sandbox
from tests.acceptance.conftest import Server, serve, stop
from tests.acceptance.releasing import python_runner, release
from tests.acceptance.running import House
from tests.acceptance.test_files_pause import boot_id, check_rebooted, furnish
from tests.acceptance.test_isolation_choice import HEADER, ask, options, told

MICROVM = ("microvm-kvm", "microvm-emulated")
pytestmark = pytest.mark.timeout(900)  # an emulated machine boots in seconds, on a busy host in a minute


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with gVisor and QEMU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WARDIAN_DRIVERS", "gvisor,qemu")
        server = serve(tmp_path_factory.mktemp("real"))
    yield server
    for item in ask(server, "GET", "/v2/sandboxes").json():
        ask(server, "DELETE", f"/sandboxes/{item['sandboxID']}")
    stop(server)


def test_the_same_sdk_on_either_wall(real: Server) -> None:
    """Create, run, write, pause, resume, fork; each wall has a kernel of another kind."""
    kernels = {}
    for asked in ("gvisor", "microvm"):
        sandbox = Sandbox.create(timeout=600, request_timeout=120, **options(real, **{HEADER: asked}))
        level = told(real, sandbox)
        kernels[asked] = sandbox.commands.run("cat /proc/version", timeout=60).stdout
        sandbox.files.write("/home/user/kept", asked)
        sandbox.pause(request_timeout=120)
        sandbox.connect(timeout=600, request_timeout=120)
        assert sandbox.files.read("/home/user/kept") == asked
        assert told(real, sandbox) == level
        forked = ask(real, "POST", f"/sandboxes/{sandbox.sandbox_id}/fork", {"count": 1}).json()
        assert forked[0]["sandbox"]["isolation"] == level
        ask(real, "DELETE", f"/sandboxes/{forked[0]['sandbox']['sandboxID']}")
        sandbox.kill()
        assert level == "gvisor" if asked == "gvisor" else level in MICROVM
    assert kernels["gvisor"] != kernels["microvm"]


def test_a_pause_of_the_files_ends_in_a_boot_of_the_microvm(real: Server) -> None:
    """And whatever its wall is, it is that one again."""
    sandbox = Sandbox.create(timeout=600, request_timeout=120, **options(real, **{HEADER: "microvm"}))
    level, before = told(real, sandbox), furnish(sandbox)
    assert sandbox.pause(mode="filesystem", request_timeout=120) is True
    assert ask(real, "GET", f"/sandboxes/{sandbox.sandbox_id}").json()["pauseMode"] == "filesystem"
    sandbox.connect(timeout=600, request_timeout=120)
    check_rebooted(sandbox, before)
    assert told(real, sandbox) == level
    # And a full pause afterwards keeps everything.
    now = boot_id(sandbox)
    sandbox.pause(request_timeout=120)
    sandbox.connect(timeout=600, request_timeout=120)
    assert boot_id(sandbox) == now
    sandbox.kill()


def test_files_go_from_one_wall_to_the_other(real: Server) -> None:
    weak = Sandbox.create(timeout=600, **options(real, **{HEADER: "gvisor"}))
    weak.files.write("/home/user/kept", "moved")
    body = {"name": "moving", "memory": False}
    kept = ask(real, "POST", f"/sandboxes/{weak.sandbox_id}/snapshots", body).json()
    weak.kill()
    moved = Sandbox.create(
        kept["snapshotID"], timeout=600, request_timeout=120, **options(real, **{HEADER: "microvm"})
    )
    assert told(real, moved) in MICROVM
    assert moved.files.read("/home/user/kept") == "moved"
    moved.kill()


UNDER_WAY = """
import ctypes
while not os.path.exists("/home/user/go"):
    time.sleep(0.02)
import lazy
assert ctypes.CDLL(os.path.join(os.path.dirname(__file__), "native.so")).answer() == 42
return [VERSION, lazy.VERSION, os.readlink("/run/wardian/runner/current")]
"""


def test_a_runner_beside_a_microvm(real: Server, tmp_path: Path) -> None:
    """Released, run, switched under a run, and taken back; native code loads from it, too."""
    house = House(real)
    source, library = tmp_path / "native.c", tmp_path / "native.so"
    source.write_text("int answer(void) { return 42; }")
    subprocess.run(["gcc", "-shared", "-nostdlib", "-o", library, source], check=True)

    def released(version: str) -> str:
        more = {"lazy.py": f"VERSION = 'lazy {version}'"}
        directory = python_runner(tmp_path, version, work=UNDER_WAY, more=more)
        shutil.copy(library, directory)
        with (directory / "runner.toml").open("a") as manifest:
            manifest.write("native = true\n")
        return str(release(house, directory, "walled")["release"])

    def begun() -> tuple[str, str]:
        """A run, working, and its machine, which is behind the wall that its agent asks for."""
        run = house.begin("walled")
        sandbox = house.until(run, lambda told: told["state"] == "running")["sandboxID"]
        assert ask(real, "GET", f"/sandboxes/{sandbox}").json()["isolation"] in MICROVM
        return run, sandbox

    def go(run: str) -> list[str]:
        house.files(house.get(run)["sandboxID"])("POST", "go", files={"file": b""})
        ended = house.end(run)
        assert ended["state"] == "succeeded", ended
        found: list[str] = ended["result"]
        return found

    first = released("1.0")
    frozen = {"environment": "base", "runner": "walled", "isolation": "microvm"}
    assert house.call("PUT", "/agents/walled", frozen).status_code == 200
    run, sandbox = begun()
    second = released("2.0")
    for wanted in (second, first, second):
        switched = house.call("POST", f"/sandboxes/{sandbox}/runner", {"runner": "walled", "release": wanted})
        assert (switched.json()["state"], switched.json()["release"]) == ("switched", wanted)
    assert go(run) == ["1.0", "lazy 1.0", second[:16]]  # what runs keeps what it runs
    assert house.call("POST", "/runners/walled/current", {"release": first}).status_code == 200
    run, _ = begun()
    assert go(run) == ["1.0", "lazy 1.0", first[:16]]
    house.http.close()
