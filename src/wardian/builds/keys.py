"""The keys of a stage's steps: equal keys, equal files. Pure.

A step's key is a digest over everything that decides what the files are after it: the key before it (so the
whole prefix, down to the digest of the root image), what the step says, the digest of the files it brings,
who and where it runs as and with which environment, and the version of the builder itself.
"""

from __future__ import annotations

import json
import posixpath
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256

from wardian.builds.errors import BuildFailed
from wardian.builds.expand import BadExpansion, expand
from wardian.model.build import Step, StepKind, Surroundings

VERSION = 2
"""To be raised whenever a step would give other files than it gave before."""

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""What PATH is as long as nothing sets it, as the guest agent has it."""


@dataclass(frozen=True, slots=True)
class Keyed:
    """A step with its variables expanded, what it runs in, and its key."""

    step: Step
    surroundings: Surroundings
    key: str


def ground_key(root_digest: str, surroundings: Surroundings) -> str:
    """The key of a root image on which nothing has been done yet."""
    return _digest(["ground", VERSION, root_digest, _plain(surroundings)])


def chain(
    key: str, surroundings: Surroundings, steps: Sequence[Step], digest_of: Callable[[str], str]
) -> tuple[Sequence[Keyed], Surroundings]:
    """Every step with its key, and what is set after the last one.

    ``digest_of`` gives the digest of the files that a step's ``files`` names.
    """
    keyed: list[Keyed] = []
    for said in steps:
        step = _expanded(said, surroundings)
        files = digest_of(step.files) if step.files else ""
        key = _digest([key, step.kind.value, step.args, files, step.user, _plain(surroundings)])
        keyed.append(Keyed(step, surroundings, key))
        surroundings = after(surroundings, step)
    return keyed, surroundings


def after(surroundings: Surroundings, step: Step) -> Surroundings:
    """What is set once ``step`` is done."""
    match step.kind:
        case StepKind.ENV:
            pairs = zip(step.args[::2], step.args[1::2], strict=True)
            return replace(surroundings, env={**surroundings.env, **dict(pairs)})
        case StepKind.WORKDIR:
            return replace(surroundings, workdir=absolute(surroundings, step.args[0]))
        case StepKind.USER:
            return replace(surroundings, user=step.args[0])
        case _:
            return surroundings


def absolute(surroundings: Surroundings, path: str) -> str:
    """``path`` as seen from the working directory, and from the user's home for want of one."""
    return posixpath.normpath(posixpath.join(surroundings.workdir or home_of(surroundings.user), path))


def home_of(user: str) -> str:
    """Where a user lives, as everybody does whom a build makes."""
    name = user.partition(":")[0]
    return "/root" if name == "root" else f"/home/{name}"


def _expanded(step: Step, surroundings: Surroundings) -> Step:
    if not step.expand:
        return step
    values = {"PATH": PATH, "HOME": home_of(surroundings.user), **surroundings.env}
    names = frozenset(range(0, len(step.args), 2)) if step.kind is StepKind.ENV else frozenset()
    try:
        args = tuple(
            argument if number in names else expand(argument, values)
            for number, argument in enumerate(step.args)
        )
    except BadExpansion as error:
        raise BuildFailed(str(error), step=step) from None
    return replace(step, args=args, expand=False)


def _plain(surroundings: Surroundings) -> Mapping[str, object]:
    return {
        "env": dict(surroundings.env),
        "workdir": surroundings.workdir,
        "user": surroundings.user,
    }


def _digest(parts: Sequence[object]) -> str:
    return sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
