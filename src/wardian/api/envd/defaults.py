"""What a request to a sandbox means where it does not say: the user and the directory of its template."""

from __future__ import annotations

from wardian.model.sandbox import Sandbox


def user_of(named: str | None, sandbox: Sandbox) -> str:
    """The user asked for, else the template's."""
    return named or sandbox.surroundings.user


def directory_of(asked: str | None, sandbox: Sandbox) -> str | None:
    """Where a process starts, or which directory an empty path means: the template's. None: the user's home.

    A relative one is taken from the user's home, whatever the template's directory is.
    """
    return asked or sandbox.surroundings.workdir
