"""``wardian template explain``: what is different between two builds, and why.

From what the API tells of each build (``GET /wardian/builds/…``) and of their files
(``GET /wardian/differences``). Pure; every answer is a list of lines for people.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from difflib import SequenceMatcher
from typing import Any

from wardian.builds import lock as locks
from wardian.builds.errors import describe, shortened
from wardian.builds.plans import needed_stages, plan_of
from wardian.images.difference import Change, Count, How, Version
from wardian.model.build import Step

REASONS_MAX = 20
DIRECTORIES_SHOWN = 5
NOT_TOLD = "what it was made of is not told: another tenant built it, or the house"


def settings(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What is different beside the files: what runs, as whom, with which variables and how much."""
    found = []
    for what in ("start", "ready"):
        if old[what] != new[what]:
            found.append(f"{what}: {old[what] or 'nothing'} became {new[what] or 'nothing'}")
    found += _fields("resources", old["resources"], new["resources"])
    before, after = old["surroundings"], new["surroundings"]
    found += _fields("environment", before["env"], after["env"])
    return found + _fields("processes", {**before, "env": None}, {**after, "env": None})


def files(told: Mapping[str, Any]) -> list[str]:
    """Which files and packages are different. ``told`` is the answer about the differences."""
    counts: Mapping[str, int] = told["counts"]
    found = [f"{counts['added']} added, {counts['removed']} removed, {counts['changed']} changed"]
    shown = [Change(**{**each, "how": How(each["how"])}) for each in told["paths"]]
    found += [f"  {change}" for change in shown]
    left = sum(counts.values()) - len(shown)
    if left > 0:
        found.append(f"  and {left} more")
        where = [str(Count(**each)) for each in told["directories"][:DIRECTORIES_SHOWN]]
        found += ["most of them in:", *(f"  {each}" for each in where)]
    for kind, versions in told["packages"].items():
        found += [f"{kind} packages:", *(f"  {Version(**each)}" for each in versions)]
    return found


def reasons(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Why the files are different: the base, the steps, what they copied and which versions they got."""
    if old["lock"] is None or new["lock"] is None:
        return [NOT_TOLD]
    found = list(locks.differences(locks.of_plain(old["lock"]), locks.of_plain(new["lock"])))
    found = [*(_steps(old, new)), *found]
    if len(found) > REASONS_MAX:
        found[REASONS_MAX:] = [f"and {len(found) - REASONS_MAX} more"]
    return found or ["a command of a RUN, which gave another result than before"]


def _steps(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    """The steps that are not the same, by their number in the plan they are in."""
    before, after = _steps_of(old), _steps_of(new)
    matcher = SequenceMatcher(None, [_input(step) for step in before], [_input(step) for step in after])
    for what, i1, i2, j1, j2 in matcher.get_opcodes():
        if what == "equal":
            continue
        both = min(i2 - i1, j2 - j1)
        for k in range(both):
            yield _changed(j1 + k, before[i1 + k], after[j1 + k])
        for k in range(i1 + both, i2):
            yield f"step {k + 1} is gone: {_words(before[k])}"
        for k in range(j1 + both, j2):
            yield f"step {k + 1}{_line(after[k])} is new: {_words(after[k])}"


def _changed(number: int, old: Step, new: Step) -> str:
    place = f"step {number + 1}{_line(new)}"
    if _words(old) != _words(new):
        return f"{place}: {_words(old)} became {_words(new)}"
    if old.files != new.files:
        return f"{place} copies other files: {_words(new)}"
    return f"{place} was given other arguments: {_words(new)}"


def _steps_of(told: Mapping[str, Any]) -> Sequence[Step]:
    plan = plan_of(json.dumps(told["plan"]).encode())
    return [step for stage in needed_stages(plan.stages) for step in stage.steps]


def _input(step: Step) -> tuple[object, ...]:
    """All that a step itself says, but for where the manifest says it."""
    return step.kind, step.args, step.files, step.user


def _words(step: Step) -> str:
    return shortened(step.text or describe(step))


def _line(step: Step) -> str:
    return f" (line {step.line})" if step.line else ""


def _fields(what: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    return [
        f"{what}: {name}: {old.get(name, 'nothing')} became {new.get(name, 'nothing')}"
        for name in sorted({*old, *new})
        if old.get(name) != new.get(name)
    ]
