"""An agent: a named, versioned app. A version never changes: what it ran yesterday it runs today."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from wardian.model.budget import Budget, Scope, Unit
from wardian.model.confines import FREE, Confines
from wardian.model.errors import Invalid

NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
CODE = re.compile(r"sha256:[0-9a-f]{64}")
ENTRY_MAX = 16 * 1024
ATTEMPTS_MAX = 100
EVERY_S, EVERY_S_MIN = 60, 1
TIMEOUT_S_MAX = 30 * 24 * 3600
KEEP_MAX = 100
CHILDREN_MAX = 1000


class Checkpoint(StrEnum):
    """When the machine is captured with what a step brought."""

    ALWAYS = "always"
    NEVER = "never"  # the step's result alone is kept: recovery begins at an earlier machine, and replays


@dataclass(frozen=True, slots=True)
class Limits:
    """``timeout_s`` is of a run from its start to its end, waits included; ``attempts`` is how often a
    machine is made for it before it is given up.

    ``at_once``: of the runs that it begins, as many work at a time, and others are queued; ``tree``: so many
    runs may come of one that nobody began, itself included. ``budget`` is what it may use through the bridge,
    together with all that come of it: an amount for each unit.
    """

    timeout_s: int = 3600
    attempts: int = 5
    at_once: int = 20
    tree: int = 200
    budget: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Version:
    """What an agent is from one ``freeze`` to the next.

    ``environment`` is a build of a template or a kept snapshot, by id: the same bytes for ever. ``entry`` is
    for bash; it may be empty where a ``runner`` is named, whose start is run then. Every ``every_s`` seconds
    without a commit the machine is captured by itself; 0: it is not. The machines of the last ``keep``
    commits are kept, so that a run can go back to them. No run goes beyond its ``confines``.

    ``outside``: a workflow. Its program runs in a worker outside of any sandbox, and drives as many as it
    wants. Then there is no environment, and ``entry`` is the digest of the program.
    """

    agent_id: str
    number: int
    environment: str
    entry: str
    created_at: int
    env: Mapping[str, str] = field(default_factory=dict)
    checkpoint: Checkpoint = Checkpoint.ALWAYS
    every_s: int = EVERY_S
    keep: int = 1
    limits: Limits = field(default_factory=Limits)
    confines: Confines = FREE
    outside: bool = False
    runner: str = ""


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
        raise Invalid(
            f"there is no checkpoint policy {text[:32]!r}",
            code="bad_checkpoint",
            hint="'always' keeps the machine with every step, 'never' its result alone",
        ) from None


def check_name(name: str) -> None:
    """Raise :class:`Invalid` unless it can be an agent's name."""
    if not NAME.fullmatch(name):
        raise Invalid(
            f"{name[:64]!r} is no name for an agent",
            code="bad_agent_name",
            hint="lower-case letters, digits and dashes, at most 63",
        )


def check_version(version: Version) -> None:
    """Raise :class:`Invalid` if no run could come of it."""
    entry, every_s, limits = version.entry, version.every_s, version.limits
    if version.outside:
        if version.environment or not CODE.fullmatch(entry):
            raise Invalid(
                "a workflow has no environment, and its entry is the digest of its code",
                code="bad_workflow",
                hint="`wardian workflow serve FILE` makes it",
            )
    elif not version.environment:
        raise Invalid(
            "a version needs an environment",
            code="environment_missing",
            hint="name a template, or a snapshot that is kept",
        )
    if not (entry.strip() or version.runner) or len(entry) > ENTRY_MAX or "\0" in entry:
        raise Invalid(
            "entry must be a command for bash, of 16 KiB at most",
            code="bad_entry",
            hint="put a longer program into the environment, and have the entry call it",
        )
    if every_s and not EVERY_S_MIN <= every_s <= TIMEOUT_S_MAX:
        raise Invalid(
            f"every_s must be 0, or between {EVERY_S_MIN} and {TIMEOUT_S_MAX}",
            code="bad_limit",
            hint="seconds without a commit after which the machine is kept by itself; 0: never",
        )
    _check_between(
        ("keep", version.keep, KEEP_MAX),
        ("timeout_s", limits.timeout_s, TIMEOUT_S_MAX),
        ("attempts", limits.attempts, ATTEMPTS_MAX),
        ("at_once", limits.at_once, CHILDREN_MAX),
        ("tree", limits.tree, CHILDREN_MAX),
    )
    for unit, most in limits.budget.items():
        budget_of("", "", unit, most)


def budget_of(tenant: str, run_id: str, unit: str, most: int) -> Budget:
    """What a run may use. Raises :class:`Invalid` for a unit that there is not."""
    if unit not in set(Unit):
        raise Invalid(
            f"there is no budget of {unit[:32]!r}", code="bad_budget", hint=f"it is of {', '.join(Unit)}"
        )
    budget = Budget(tenant, Scope.RUN, run_id or "run", Unit(unit), most)
    budget.check()
    return budget


def _check_between(*limits: tuple[str, int, int]) -> None:
    for name, value, most in limits:
        if not 1 <= value <= most:
            raise Invalid(
                f"{name} must be between 1 and {most}",
                code="bad_limit",
                hint="leave it out for the usual one; `wardian agent freeze --help` has them",
            )
