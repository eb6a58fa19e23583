"""Monday's sandbox and Friday's have the same files, and those are the image's: hashed inside, by themselves.

Every byte of the root is read inside gVisor, twice. That what hashes inside sees every change is told by
``tests/unit/test_images_erofs.py``.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from e2b import Sandbox
from tests.acceptance.conftest import serve, stop

from wardian.images import guest_tree
from wardian.images.catalog import base_image
from wardian.images.erofs import Image

HASH_S = 180


def hash_inside(sandbox: Sandbox) -> str:
    """The digest of the sandbox's files, as its own Python finds them."""
    script = Path(guest_tree.__file__).read_bytes()
    sandbox.files.write("/run/tree.py", script, user="root")
    found = sandbox.commands.run("python3 /run/tree.py", user="root", timeout=HASH_S)
    return found.stdout.strip()


@pytest.mark.timeout(400)
def test_every_boot_has_the_bytes_of_the_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two lives of the server, and a sandbox that was paused in between. One changed bit would tell."""
    with Image(base_image().root.path) as image:
        expected = image.tree_digest(without=guest_tree.LEFT_OUT)
        assert expected != image.tree_digest()
    paused = ""
    for day in ("Monday", "Friday"):
        server = serve(tmp_path)
        try:
            for name in ("E2B_API_URL", "E2B_SANDBOX_URL"):
                monkeypatch.setenv(name, server.url)
            monkeypatch.setenv("E2B_API_KEY", server.key)
            fresh = Sandbox.create(timeout=600)
            if day == "Monday":
                fresh.pause()
                paused = fresh.sandbox_id
                continue
            assert hash_inside(Sandbox.connect(paused)) == expected
            assert hash_inside(fresh) == expected
            Sandbox.kill(fresh.sandbox_id)
            Sandbox.kill(paused)
        finally:
            stop(server)
