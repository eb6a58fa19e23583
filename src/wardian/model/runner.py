"""A runner: code that is released many times a day, and put beside environments that never change."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from hashlib import sha256
from typing import Any

DIGEST_SHOWN = 16
"""Hex digits by which a release is called inside, and which a user has to give at least."""


class Language(StrEnum):
    """What its start and its self-test are run by, and how it is looked over before."""

    PYTHON = "python"
    NODE = "node"
    ANY = "any"  # a script that names its interpreter


@dataclass(frozen=True, slots=True)
class Release:
    """A tree of files that never changes. ``number`` names it within this server for good: the kernels of
    machines remember it."""

    number: int
    runner_id: str
    digest: str  # 64 hex digits, of the sorted tree
    version: str  # what its makers call it
    language: Language
    files: int
    bytes: int
    created_at: int
    good_at: int | None = None  # when it first passed in a sandbox

    @property
    def shown(self) -> str:
        return self.digest[:DIGEST_SHOWN]


@dataclass(frozen=True, slots=True)
class Runner:
    """``current`` is the number of the release that new runs get, but for ``share`` percent of them, which
    get the ``canary``. ``rolled_back`` tells why a canary went: release, why, run, at."""

    id: str
    tenant: str
    name: str
    current: int
    created_at: int
    previous: int | None = None
    canary: int | None = None
    share: int = 0
    rolled_back: Mapping[str, Any] | None = None

    def chosen_for(self, run_id: str) -> int:
        """The release for a run: the same one whenever it is asked."""
        if self.canary is None or self.share == 0:
            return self.current
        ticket = int.from_bytes(sha256(run_id.encode()).digest()[:8]) % 100
        return self.canary if ticket < self.share else self.current


@dataclass(frozen=True, slots=True)
class Place:
    """What stands beside an environment: of a run, in whichever machine it has, or of a sandbox that is no
    run's. ``held`` are releases that something inside may have open; ``wanted`` is put in at the resume."""

    owner: str
    runner_id: str
    current: int | None = None
    held: tuple[int, ...] = ()
    wanted: int | None = None


@dataclass(frozen=True, slots=True)
class Holder:
    """What may have releases open: a ``sandbox`` that has not ended, or a ``run``. Of one that is ``over``
    the machine is kept."""

    kind: str
    id: str
    over: bool = False


__all__ = ["DIGEST_SHOWN", "Holder", "Language", "Place", "Release", "Runner"]
