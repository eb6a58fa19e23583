"""Templates as a user builds them: `wardian template` on a running server."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.acceptance.conftest import Server

PROGRAM = str(Path(sys.executable).with_name("wardian"))


def wardian(
    server: Server, *words: str, group: str = "template", key: str | None = None
) -> subprocess.CompletedProcess[str]:
    """``wardian GROUP WORDS`` with that key, or the server's, to its end."""
    command = [PROGRAM, group, "--url", server.url, "--api-key", key or server.key, *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def key_of(server: Server, tenant: str) -> str:
    """A key for a tenant, who is made if need be."""
    command = [PROGRAM, "key", "create", "--json", "--tenant", tenant, "--data", str(server.data)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return str(json.loads(done.stdout)["key"])


def build(server: Server, directory: Path, *words: str, key: str | None = None) -> dict[str, Any]:
    """Build what is in a directory, and what is told of it; it must succeed."""
    done = wardian(server, "build", str(directory), "--json", *words, key=key)
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def image_of(server: Server, image: str) -> Path:
    """The file of a root image (``sha256:…``) of that server."""
    return server.data / "roots" / f"{image.removeprefix('sha256:')}.erofs"
