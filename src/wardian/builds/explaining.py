"""``wardian template explain``: what is different between two builds, from what each was made of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wardian.builds import lock as locks


def explained(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """One sentence for each difference between two builds as the API tells them; none: the same bytes, run in
    the same way."""
    found: list[str] = []
    if old["tree"] != new["tree"]:
        found.append(f"files: {old['tree']} became {new['tree']}, because of:")
        found += [f"  {reason}" for reason in _reasons(old, new)]
    for what in ("start", "ready"):
        if old[what] != new[what]:
            found.append(f"{what}: {old[what] or 'nothing'} became {new[what] or 'nothing'}")
    found += _fields("resources", old["resources"], new["resources"])
    before, after = old["surroundings"], new["surroundings"]
    found += _fields("environment", before["env"], after["env"])
    found += _fields("processes", {**before, "env": None}, {**after, "env": None})
    return found


def _reasons(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    if old["lock"] is None or new["lock"] is None:
        return ["what it was made of is not told: another tenant built it, or the house"]
    reasons = list(locks.differences(locks.of_plain(old["lock"]), locks.of_plain(new["lock"])))
    return reasons or ["a command of a RUN, which gave another result than before"]


def _fields(what: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    return [
        f"{what}: {name}: {old.get(name, 'nothing')} became {new.get(name, 'nothing')}"
        for name in sorted({*old, *new})
        if old.get(name) != new.get(name)
    ]
