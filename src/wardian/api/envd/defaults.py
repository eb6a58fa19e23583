"""What a request to a sandbox means where it does not say: the user and the directory of its template."""

from __future__ import annotations

import posixpath

from wardian.model.sandbox import Sandbox


def user_of(named: str | None, sandbox: Sandbox) -> str:
    """The user asked for, else the template's."""
    return named or sandbox.surroundings.user


def path_in(path: str, sandbox: Sandbox) -> str:
    """``path`` where it is relative, taken from the template's directory; without one, from the home."""
    workdir = sandbox.surroundings.workdir
    if workdir is None or path.startswith(("/", "~")):
        return path
    return posixpath.join(workdir, path) if path else workdir


def directory_of(asked: str | None, sandbox: Sandbox) -> str | None:
    """Where a process starts: as asked, else in the template's directory. None: in its user's home."""
    return path_in(asked or "", sandbox) or None
