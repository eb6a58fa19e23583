"""An agent: a named, versioned app. A version never changes: what it ran yesterday it runs today."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from wardian.model.errors import Invalid

NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
ENTRY_MAX = 16 * 1024
ATTEMPTS_MAX = 100
EVERY_S, EVERY_S_MIN = 60, 1
TIMEOUT_S_MAX = 30 * 24 * 3600


class Checkpoint(StrEnum):
    """When the machine is captured with what a step brought."""

    ALWAYS = "always"
    NEVER = "never"  # the step's result alone is kept: recovery begins at an earlier machine, and replays


@dataclass(frozen=True, slots=True)
class Limits:
    """``timeout_s`` is of a run from its start to its end, waits included; ``attempts`` is how often a
    machine is made for it before it is given up."""

    timeout_s: int = 3600
    attempts: int = 5


@dataclass(frozen=True, slots=True)
class Version:
    """What an agent is from one ``freeze`` to the next.

    ``environment`` is a build of a template or a kept snapshot, by id: the same bytes for ever. ``entry`` is
    for bash. Every ``every_s`` seconds without a commit the machine is captured by itself; 0: it is not.
    """

    agent_id: str
    number: int
    environment: str
    entry: str
    created_at: int
    env: Mapping[str, str] = field(default_factory=dict)
    checkpoint: Checkpoint = Checkpoint.ALWAYS
    every_s: int = EVERY_S
    limits: Limits = field(default_factory=Limits)


@dataclass(frozen=True, slots=True)
class Agent:
    """``version`` is the number of the one that new runs get."""

    id: str
    tenant: str
    name: str
    version: int
    created_at: int


def checkpoint_of(text: str) -> Checkpoint:
    """Raise :class:`Invalid` for a policy that there is not."""
    try:
        return Checkpoint(text)
    except ValueError:
        raise Invalid("checkpoint is 'always' or 'never'", code="bad_checkpoint") from None


def check_name(name: str) -> None:
    """Raise :class:`Invalid` unless it can be an agent's name."""
    if not NAME.fullmatch(name):
        raise Invalid(
            f"{name[:64]!r} is no name for an agent",
            code="bad_agent_name",
            hint="lower-case letters, digits and dashes, at most 63",
        )


def check_version(entry: str, every_s: int, limits: Limits) -> None:
    """Raise :class:`Invalid` if no run could come of it."""
    if not entry.strip() or len(entry) > ENTRY_MAX or "\0" in entry:
        raise Invalid("entry must be a command for bash, of 16 KiB at most", code="bad_entry")
    if every_s and not EVERY_S_MIN <= every_s <= TIMEOUT_S_MAX:
        raise Invalid(f"every_s must be 0, or between {EVERY_S_MIN} and {TIMEOUT_S_MAX}", code="bad_limit")
    if not 1 <= limits.timeout_s <= TIMEOUT_S_MAX:
        raise Invalid(f"timeout_s must be between 1 and {TIMEOUT_S_MAX}", code="bad_limit")
    if not 1 <= limits.attempts <= ATTEMPTS_MAX:
        raise Invalid(f"attempts must be between 1 and {ATTEMPTS_MAX}", code="bad_limit")
