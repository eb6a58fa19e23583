"""Where the local server says how to reach it, so that commands on the same machine need no settings.

``wardian serve`` writes ``server.json`` into its data directory once it listens: readable by its owner only,
because a key is in it.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from wardian.store import private

NAME = "server.json"


@dataclass(frozen=True, slots=True)
class ServerFile:
    """How to reach a server: its base URL, an API key, and its process id."""

    url: str
    key: str
    pid: int


def default_data_dir() -> Path:
    """``WARDIAN_DATA``, else the system's place for root, else the user's own."""
    if given := os.environ.get("WARDIAN_DATA"):
        return Path(given)
    if os.geteuid() == 0:
        return Path("/var/lib/wardian")
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local/share") / "wardian"


def write(data_dir: Path, server: ServerFile) -> Path:
    """Publish ``server`` for this machine's users of ``data_dir``, mode 0600, at once or not at all."""
    path = data_dir / NAME
    private.publish(path, json.dumps(asdict(server)).encode())
    return path


def read(data_dir: Path) -> ServerFile | None:
    """What the last server of ``data_dir`` published; None when there is nothing, or nothing we may read."""
    try:
        fields = json.loads((data_dir / NAME).read_text())
        return ServerFile(url=str(fields["url"]), key=str(fields["key"]), pid=int(fields.get("pid", 0)))
    except (OSError, ValueError, KeyError, TypeError):
        return None
