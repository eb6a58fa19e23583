"""What is different in the files of two builds. Every file of both is read: seconds, one pair at a time.

Whoever built them chose the names in them, so what is told of a path can be shown on a terminal.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from wardian.builds.inventory import inventory
from wardian.images.difference import Change, Count, How, Version, difference, versions
from wardian.images.erofs import Image
from wardian.isolation.port import RootImage

PATHS_MAX = 1000
DIRECTORIES_MAX = 20
VERSIONS_MAX = 1000  # of each kind of packages
REMEMBERED_MAX = 32


@dataclass(frozen=True, slots=True)
class Comparison:
    """How many paths are different, the first of them, and where most of them are.

    ``packages`` are the versions that are not the same, by kind (debian, python, node).
    """

    counts: Mapping[How, int]
    changes: Sequence[Change]
    directories: Sequence[Count]
    packages: Mapping[str, Sequence[Version]]

    def __bool__(self) -> bool:
        return any(self.counts.values())


SAME = Comparison(dict.fromkeys(How, 0), (), (), {})


class Comparisons:
    """Compares root images, and remembers what came of it: images never change."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], Comparison] = {}
        self._turn = asyncio.Lock()

    async def of(self, before: RootImage, after: RootImage) -> Comparison:
        """What makes ``after`` another image than ``before``."""
        if before.digest == after.digest:
            return SAME
        pair = before.digest, after.digest
        async with self._turn:
            if pair not in self._known:
                found = await asyncio.to_thread(_compare, before, after)
                if len(self._known) >= REMEMBERED_MAX:
                    self._known.clear()
                self._known[pair] = found
            return self._known[pair]


def _compare(before: RootImage, after: RootImage) -> Comparison:
    with Image(before.path) as old, Image(after.path) as new:
        found = difference(old, new)
        packages = dict(_packages(inventory(old), inventory(new)))
    counted = Counter(change.how for change in found.changes)
    return Comparison(
        {how: counted[how] for how in How},
        [_shown(change) for change in found.changes[:PATHS_MAX]],
        [replace(each, name=_printable(each.name)) for each in found.by_directory(3)[:DIRECTORIES_MAX]],
        packages,
    )


def _shown(change: Change) -> Change:
    what = {name: _printable(words) for name, words in change.what.items()}
    return replace(change, path=_printable(change.path), what=what, package=_printable(change.package))


def _printable(text: str) -> str:
    """``text`` with everything escaped that is no visible character."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _packages(
    before: Mapping[str, Mapping[str, str]], after: Mapping[str, Mapping[str, str]]
) -> Iterator[tuple[str, Sequence[Version]]]:
    for kind in sorted({*before, *after}):
        if found := versions(before.get(kind, {}), after.get(kind, {})):
            yield kind, found[:VERSIONS_MAX]
