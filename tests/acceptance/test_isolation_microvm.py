"""A real microVM beside gVisor on one server, with the unmodified SDK: emulated where no KVM works."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from e2b import Sandbox
from tests.acceptance.conftest import Server, serve, stop
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
