"""Whose sandbox this is: what the machine's agent writes down whenever it is handed to somebody.

The warm snapshot belongs to nobody. A clone of it finds a new id here, and its owner's environment.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

RUN = Path("/run/e2b")


class EnvironmentTooLarge(Exception):
    """The sandbox's own environment does not fit into what a machine is told at hand-out."""


@dataclass(frozen=True, slots=True)
class Owner:
    """A sandbox's id, and the environment that everything in it starts with."""

    sandbox_id: str = ""
    env: Mapping[str, str] = field(default_factory=dict)


def owner(run: Path = RUN) -> Owner:
    """Who the sandbox is now. Nobody, where no such file is. EnvironmentTooLarge as the host says so."""
    try:
        sandbox_id = (run / ".E2B_SANDBOX_ID").read_text().strip()
    except FileNotFoundError:
        return Owner()
    return Owner(sandbox_id, _environment(run / ".WARDIAN_ENV"))


def _environment(path: Path) -> Mapping[str, str]:
    try:
        env = json.loads(path.read_text() or "{}")
    except FileNotFoundError:
        return {}
    if env is None:
        raise EnvironmentTooLarge
    return dict(env)
