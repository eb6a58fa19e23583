"""The templates that come with Wardian: a directory each, with an ordinary manifest and what it copies."""

from __future__ import annotations

from pathlib import Path

from wardian.model.errors import NotFound

DIRECTORIES = {"code-interpreter-v1": "code_interpreter", "desktop": "desktop"}


def directory(name: str) -> Path:
    """Where the manifest of a built-in template is. Raises NotFound."""
    try:
        return Path(__file__).parent / DIRECTORIES[name]
    except KeyError:
        raise NotFound(
            f"no template {name!r} comes with Wardian", hint=f"there are {', '.join(DIRECTORIES)}"
        ) from None
