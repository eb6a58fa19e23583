"""What differs between two root images: which paths, and in what; counted by directory and by package.

Pure: two readers in, values out. ``str()`` of every value is a line for people.
"""

from __future__ import annotations

import re
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from wardian.images.base import packages_in
from wardian.images.erofs import Image, Node

DPKG_STATUS = "/var/lib/dpkg/status"
DPKG_LISTS = re.compile(r"/var/lib/dpkg/info/([^/:]+)(?::[^/]+)?\.list")


class How(StrEnum):
    """What became of a path on the way from the one image to the other."""

    ADDED = "added"
    REMOVED = "removed"
    CHANGED = "changed"


@dataclass(frozen=True, slots=True)
class Change:
    """One path. ``what`` names what changed of it (type, mode, owner, content), as "before → after"."""

    path: str
    how: How
    what: Mapping[str, str]
    package: str = ""  # the Debian package it belongs to, if any

    def __str__(self) -> str:
        sign = {How.ADDED: "+", How.REMOVED: "-", How.CHANGED: "~"}[self.how]
        return f"{sign} {self.path}" + "".join(f"  {name} {words}" for name, words in self.what.items())


@dataclass(frozen=True, slots=True)
class Version:
    """A package that is not the same in both; "" is where it is not installed."""

    package: str
    before: str
    after: str

    def __str__(self) -> str:
        if not self.before:
            return f"+ {self.package} {self.after}"
        return (
            f"~ {self.package} {self.before} → {self.after}"
            if self.after
            else f"- {self.package} {self.before}"
        )


@dataclass(frozen=True, slots=True)
class Count:
    """How many paths changed in one place: a directory, or a package."""

    name: str
    added: int
    removed: int
    changed: int

    def __str__(self) -> str:
        return f"{self.name}: +{self.added} -{self.removed} ~{self.changed}"


@dataclass(frozen=True, slots=True)
class Difference:
    """All of it, sorted by path and by package."""

    changes: Sequence[Change]
    versions: Sequence[Version]

    def __bool__(self) -> bool:
        return bool(self.changes)

    def by_directory(self, depth: int = 2) -> Sequence[Count]:
        """Counts by the first ``depth`` parts of the directories, most changes first."""
        return _counted(self.changes, lambda change: _top(change.path, depth))

    def by_package(self) -> Sequence[Count]:
        """Counts by Debian package, most changes first; "" is of none."""
        return _counted(self.changes, lambda change: change.package)


def difference(before: Image, after: Image) -> Difference:
    """What makes ``after`` another image than ``before``. Reads every file of both: seconds."""
    old, new = _nodes(before), _nodes(after)
    owners = {**_owners(before, old), **_owners(after, new)}
    changes = []
    for path in sorted(old.keys() | new.keys()):
        package = owners.get(path, "")
        if path not in old:
            changes.append(Change(path, How.ADDED, {}, package))
        elif path not in new:
            changes.append(Change(path, How.REMOVED, {}, package))
        elif what := dict(_compared(before, old[path], after, new[path])):
            changes.append(Change(path, How.CHANGED, what, package))
    return Difference(tuple(changes), versions(_installed(before, old), _installed(after, new)))


def _nodes(image: Image) -> Mapping[str, Node]:
    return {node.path: node for node in image.walk()}


def _compared(before: Image, old: Node, after: Image, new: Node) -> Iterator[tuple[str, str]]:
    if stat.S_IFMT(old.mode) != stat.S_IFMT(new.mode):
        yield "type", f"{stat.filemode(old.mode)[0]} → {stat.filemode(new.mode)[0]}"
        return
    if old.mode != new.mode:
        yield "mode", f"{stat.S_IMODE(old.mode):04o} → {stat.S_IMODE(new.mode):04o}"
    if (old.uid, old.gid) != (new.uid, new.gid):
        yield "owner", f"{old.uid}:{old.gid} → {new.uid}:{new.gid}"
    if stat.S_ISLNK(old.mode):
        targets = [image.read(node).decode(errors="replace") for image, node in ((before, old), (after, new))]
        if targets[0] != targets[1]:
            yield "target", " → ".join(targets)
        return
    digests = [image.content_digest(node)[:12] for image, node in ((before, old), (after, new))]
    if digests[0] != digests[1]:
        yield "content", " → ".join(digests)


def _owners(image: Image, nodes: Mapping[str, Node]) -> Mapping[str, str]:
    """Which package each path belongs to, as dpkg recorded it. Directories belong to many: to nobody."""
    found = {}
    for path, node in nodes.items():
        if match := DPKG_LISTS.fullmatch(path):
            for line in image.read(node).decode(errors="surrogateescape").splitlines():
                for owned in (line, f"/usr{line}"):  # dpkg says /bin where that leads to /usr/bin
                    if owned in nodes and not stat.S_ISDIR(nodes[owned].mode):
                        found[owned] = match[1]
    return found


def _installed(image: Image, nodes: Mapping[str, Node]) -> Mapping[str, str]:
    status = nodes.get(DPKG_STATUS)
    return packages_in(image.read(status).decode(errors="replace")) if status else {}


def versions(before: Mapping[str, str], after: Mapping[str, str]) -> Sequence[Version]:
    """The packages, by name, that are not in the same version in both."""
    return tuple(
        Version(package, before.get(package, ""), after.get(package, ""))
        for package in sorted(before.keys() | after.keys())
        if before.get(package) != after.get(package)
    )


def _counted(changes: Iterable[Change], name: Callable[[Change], str]) -> Sequence[Count]:
    counts: dict[str, Counter[How]] = {}
    for change in changes:
        counts.setdefault(name(change), Counter())[change.how] += 1
    made = [Count(each, of[How.ADDED], of[How.REMOVED], of[How.CHANGED]) for each, of in counts.items()]
    return sorted(made, key=lambda count: (-(count.added + count.removed + count.changed), count.name))


def _top(path: str, depth: int) -> str:
    parts = path.strip("/").split("/")[:-1]
    return "/" + "/".join(parts[:depth])
