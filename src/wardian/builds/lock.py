"""Locks: what a build was made of, and whether another came out the same.

``wardian.lock`` lies beside the manifest, as JSON with sorted keys, so that a change of it can be read in a
diff. A build *from* a lock asks for the same base and the same versions, and is refused when its files are
not the very same.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from wardian.builds.errors import BuildFailed
from wardian.model.build import Lock
from wardian.model.errors import Invalid

NAME = "wardian.lock"
FORMAT = 1
SIZE_MAX = 8 << 20
SHOWN = 8
"""How many differences an error names."""

BASE_KIND = "base "
"""In ``packages``, what a Debian base of the stage named behind it was made of."""

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


class LockBroken(BuildFailed):
    """The build came out otherwise than its lock says."""

    code = "lock_broken"


def encode(lock: Lock) -> str:
    """The text of a lock file."""
    return json.dumps({"format": FORMAT, **plain(lock)}, indent=1, sort_keys=True) + "\n"


def plain(lock: Lock) -> dict[str, Any]:
    """A lock as JSON has it."""
    return json.loads(json.dumps(asdict(lock)))  # type: ignore[no-any-return]


def decode(text: str) -> Lock:
    """A lock from its file's text. Raises :class:`Invalid` for what is none."""
    try:
        if len(text) > SIZE_MAX:
            raise ValueError("it is too large")
        told = json.loads(text)
        if not isinstance(told, dict) or told.pop("format", None) != FORMAT:
            raise ValueError(f"its format is not {FORMAT}")
        return of_plain(told)
    except (ValueError, TypeError, RecursionError) as error:
        raise Invalid(
            f"{NAME} is not a lock: {error}", code="bad_lock", hint="remove it, and build without --locked"
        ) from None


def of_plain(told: Mapping[str, Any]) -> Lock:
    """A lock from JSON. Raises ValueError or TypeError when something in it is not what it should be."""
    lock = Lock(**told)
    _check_texts(lock.base, "base")
    _check_texts(lock.files, "files")
    if not isinstance(lock.packages, dict):
        raise ValueError("packages is not an object")
    for kind, versions in lock.packages.items():
        _check_texts(versions, f"packages.{kind}")
    if not isinstance(lock.steps, list) or not all(isinstance(step, str) for step in lock.steps):
        raise ValueError("steps is not a list of texts")
    for digest in (lock.tree, lock.image):
        if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
            raise ValueError(f"{str(digest)[:80]!r} is not a digest")
    return lock


def _check_texts(value: object, what: str) -> None:
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise ValueError(f"{what} is not an object of texts")


def base_pins(lock: Lock | None, stage: str) -> Mapping[str, str]:
    """The versions a Debian base of this stage was made of."""
    return {} if lock is None else lock.packages.get(BASE_KIND + stage, {})


def check(locked: Lock, made: Lock) -> None:
    """Raise :class:`LockBroken` unless ``made`` has the very files of ``locked``."""
    if locked.tree == made.tree and locked.image == made.image:
        return
    found = list(differences(locked, made))
    if not found:
        found = ["files that no package and no COPY accounts for: a command of a RUN gave another result"]
    more = [f"and {len(found) - SHOWN} more"] if len(found) > SHOWN else []
    raise LockBroken(
        f"the files are not those of {NAME}: {made.tree} instead of {locked.tree}",
        output=tuple(found[:SHOWN] + more),
        hint="build without --locked to accept what there is now",
    )


def differences(old: Lock, new: Lock) -> Sequence[str]:
    """What is different in what two builds were made of, one sentence each."""
    found = _changes("base", old.base, new.base)
    for kind in sorted({*old.packages, *new.packages}):
        if not kind.startswith(BASE_KIND):
            found += _changes(f"{kind} package", old.packages.get(kind, {}), new.packages.get(kind, {}))
    found += _changes("COPY", old.files, new.files)
    if not found and list(old.steps) != list(new.steps):
        found.append("the manifest's steps are not those that were locked")
    return found


def _changes(what: str, old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    found = []
    for name in sorted({*old, *new}):
        before, after = old.get(name), new.get(name)
        if before is None:
            found.append(f"{what} {name}: new, {after}")
        elif after is None:
            found.append(f"{what} {name}: gone, was {before}")
        elif before != after:
            found.append(f"{what} {name}: {before} became {after}")
    return found
