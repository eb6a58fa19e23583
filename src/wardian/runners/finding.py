"""Runners and releases by what people call them."""

from __future__ import annotations

from sqlalchemy import Connection

from wardian.model.errors import NotFound
from wardian.model.runner import Release, Runner
from wardian.store import runners

PREFIX_MIN = 6
"""Digits of a digest that a release is called by, at least."""


def find_runner(conn: Connection, tenant: str, reference: str) -> Runner:
    """By name or id. Raises NotFound."""
    found = runners.find(conn, tenant, reference)
    if found is None:
        raise NotFound(
            f"runner '{reference[:64]}' not found", code="runner_not_found", hint="`wardian runner ls`"
        )
    return found


def known_release(conn: Connection, number: int) -> Release:
    """By its number. Raises NotFound."""
    found = runners.release_of(conn, number)
    if found is None:
        raise NotFound(f"release {number} not found", code="release_not_found", hint="it was removed")
    return found


def named_release(conn: Connection, runner: Runner, reference: str) -> Release:
    """By its digest, or the beginning of it. Raises NotFound."""
    digest = reference.lower().removeprefix("sha256:")
    found = runners.find_releases(conn, runner.id, digest) if len(digest) >= PREFIX_MIN else []
    if len(found) != 1:
        what = "not found" if not found else f"is the beginning of {len(found)}"
        raise NotFound(
            f"release '{reference[:80]}' of runner {runner.name} {what}",
            code="release_not_found",
            hint=f"`wardian runner show {runner.name}` lists them",
        )
    return found[0]


__all__ = ["find_runner", "known_release", "named_release"]
