"""Looks for secrets in images: what a build was lent must not be found in what it made."""

from __future__ import annotations

import stat
from collections.abc import Iterable, Mapping
from pathlib import Path

from wardian.images.erofs import Image

SHORTEST = 6
"""Shorter values (a port, "on") are everywhere, and no secrets."""


def leaks(
    image: Path, secrets: Mapping[str, str | bytes], *, but_for: Iterable[str] = ()
) -> list[tuple[str, str]]:
    """Where in a root image something secret is, as (path, its name): in contents, targets and names.

    Paths that begin with one of ``but_for`` are what packages themselves carry. Nothing secret is in the
    answer, so that a test may show it.
    """
    wanted = {
        name: value.encode() if isinstance(value, str) else value
        for name, value in secrets.items()
        if len(value) >= SHORTEST
    }
    ignored = tuple(but_for)
    found = []
    with Image(image) as files:
        for node in files.walk():
            if ignored and node.path.startswith(ignored):
                continue
            has_content = stat.S_ISREG(node.mode) or stat.S_ISLNK(node.mode)
            held = files.read(node) if has_content else b""
            name = node.path.encode(errors="surrogateescape")
            found += [(node.path, each) for each, value in wanted.items() if value in held or value in name]
    return found
