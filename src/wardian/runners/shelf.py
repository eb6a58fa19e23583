"""What stands beside one environment: a read-only file system, answered by the host, request by request.

    /run/wardian/runner/                   mounted once
        <first 16 digits of a digest>/     a release; every one that something inside may have open
        current -> <the same digits>       the one that counts
        challenge                          random; who can read it sees this file system
        trial                              while a release is looked over, the challenge and that release as
                                           one file: a line for each entry (mode, size, path), an empty
                                           line, the bytes of all

Nothing of it is ever in the machine but what programs have read of it, so no snapshot of files has it, and
root inside can hide it, but not change it. To switch is to let ``current`` mean another release: one
assignment, here. Node numbers are for good: the release's number and the place in its sorted tree, so a
machine may be restored, and a server replaced, with files open.
"""

from __future__ import annotations

import errno
import os
import stat
from bisect import bisect_left
from collections.abc import Iterator
from contextlib import contextmanager
from secrets import token_hex
from weakref import WeakSet

from wardian.guest.guest import Guest
from wardian.model.runner import Release
from wardian.runners.store import Opened
from wardian.volumes.rows import Node
from wardian.volumes.tree import Limits

MOUNT, MOUNT_NAME = "/run/wardian/runner", "runner"
ROOT = 1
POINTER = 0xFFFFFFFF
"""The node of ``current``, among those of the release it points to: a kernel may remember where a link leads,
so another target is another link."""
HELD_MAX = 16
_MADE_NS = 946_684_800 * 10**9
"""When everything in a release is said to have been made: times are no part of it."""


class Shelf:
    """Of one run or sandbox. ``guests`` have it mounted, under this server."""

    limits = Limits(0, 0)
    usage = (0, 0)

    def __init__(self, *, of_run: bool = False) -> None:
        self.of_run = of_run
        self.guests: WeakSet[Guest] = WeakSet()
        self.current: int | None = None
        self._releases: dict[int, _Standing] = {}
        self._trial: _Trial | None = None
        self.challenge = token_hex(16)

    @property
    def held(self) -> tuple[int, ...]:
        """Numbers of the releases that can be opened, the oldest first."""
        return tuple(self._releases)

    def stage(self, release: Release, opened: Opened) -> None:
        """Let a release be seen, without its being the one that counts."""
        if release.number not in self._releases:
            self._releases[release.number] = _Standing(release, opened)

    @contextmanager
    def trial(self, opened: Opened) -> Iterator[str]:
        """Let a release be looked over: the challenge that its finder has to know."""
        self.challenge = token_hex(16)
        self._trial = _Trial(self._challenge_number + 1, self.challenge, opened)
        try:
            yield self.challenge
        finally:
            self._trial = None

    def drop(self, number: int) -> None:
        """Nobody will want a release again."""
        if number != self.current:
            self._releases.pop(number, None)

    def path_of(self, release: Release) -> str:
        return f"{MOUNT}/{release.shown}"

    # ── what FUSE asks (``volumes/fuse.py``)

    def node(self, number: int) -> Node:
        if number == ROOT:
            return _node(ROOT, stat.S_IFDIR | 0o555)
        if number & POINTER == POINTER:
            target = self._standing(number).release.shown.encode()
            return _node(number, stat.S_IFLNK | 0o777, len(target), target)
        if number == self._challenge_number:
            return _node(number, stat.S_IFREG | 0o444, len(self.challenge))
        if self._trial is not None and number == self._trial.number:
            return _node(number, stat.S_IFREG | 0o444, self._trial.size)
        return self._standing(number).node(number & POINTER)

    def parent(self, number: int) -> int:
        return ROOT if number < 1 << 32 else self._standing(number).parent(number & POINTER)

    def lookup(self, parent: int, name: bytes) -> Node:
        if parent != ROOT:
            return self._standing(parent).lookup(parent & POINTER, name)
        for known, number in self._top():
            if known == name:
                return self.node(number)
        raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))

    def scan(self, parent: int, *, after: int, limit: int) -> Iterator[tuple[int, bytes, Node]]:
        if parent != ROOT:
            yield from self._standing(parent).scan(parent & POINTER, after, limit)
            return
        for place, (name, number) in enumerate(self._top()[after : after + limit], after + 1):
            yield place, name, self.node(number)

    def read(self, number: int, offset: int, size: int) -> bytes:
        if number == self._challenge_number:
            return self.challenge.encode()[offset : offset + size]
        if self._trial is not None and number == self._trial.number:
            return self._trial.read(offset, size)
        return self._standing(number).read(number & POINTER, offset, size)

    def hold(self, number: int) -> None:
        self.node(number)

    def release(self, number: int, count: int = 1) -> None:
        pass

    def lasts(self, number: int) -> bool:
        return number >= 1 << 32 and number & POINTER != POINTER

    @property
    def _challenge_number(self) -> int:
        """Of its own for each, as kernels keep what they have read of a file."""
        return 2 + 2 * int(self.challenge[:7], 16)

    def _top(self) -> list[tuple[bytes, int]]:
        named = [(each.release.shown.encode(), number << 32) for number, each in self._releases.items()]
        pointer = [(b"current", self.current << 32 | POINTER)] if self.current in self._releases else []
        trial = [] if self._trial is None else [(b"trial", self._trial.number)]
        return [(b"challenge", self._challenge_number), *trial, *pointer, *named]

    def _standing(self, number: int) -> _Standing:
        found = self._releases.get(number >> 32)
        if found is None:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return found


class _Trial:
    """A release and a challenge as one file: to read it takes a fraction of what it takes to read a tree."""

    def __init__(self, number: int, challenge: str, opened: Opened) -> None:
        lines = (f"{each.mode:o} {each.size} {each.path}\n" for each in opened.entries)
        self.number = number
        self._head, self._content = f"{challenge}\n{''.join(lines)}\n".encode(), opened.content

    @property
    def size(self) -> int:
        return len(self._head) + len(self._content)

    def read(self, offset: int, size: int) -> bytes:
        begin, end = offset - len(self._head), offset + size - len(self._head)
        return self._head[offset : offset + size] + self._content[max(begin, 0) : max(end, 0)]


class _Standing:
    """One release: its root is 0, its entries are 1 and on, in order."""

    def __init__(self, release: Release, opened: Opened) -> None:
        self.release, self._opened = release, opened
        self._places = {each.path: place for place, each in enumerate(opened.entries, 1)}
        self._children: dict[str, list[tuple[bytes, int]]] = {"": []}
        for place, entry in enumerate(opened.entries, 1):
            above, _, name = entry.path.rpartition("/")
            if entry.is_directory:
                self._children[entry.path] = []
            self._children[above].append((name.encode(), place))
        for names in self._children.values():
            names.sort()

    def node(self, place: int) -> Node:
        number = self.release.number << 32 | place
        if place == 0:
            return _node(number, stat.S_IFDIR | 0o555)
        if place > len(self._opened.entries):
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        entry = self._opened.entries[place - 1]
        return _node(number, entry.mode, entry.size)

    def parent(self, place: int) -> int:
        above = self._path(place).rpartition("/")[0]
        if place == 0:
            return ROOT
        return self.release.number << 32 | (self._places[above] if above else 0)

    def lookup(self, place: int, name: bytes) -> Node:
        names = self._names(place)
        at = bisect_left(names, (name, 0))
        if at == len(names) or names[at][0] != name:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        return self.node(names[at][1])

    def scan(self, place: int, after: int, limit: int) -> Iterator[tuple[int, bytes, Node]]:
        for at, (name, child) in enumerate(self._names(place)[after : after + limit], after + 1):
            yield at, name, self.node(child)

    def read(self, place: int, offset: int, size: int) -> bytes:
        if not self.node(place).is_file:
            raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
        return self._opened.read(place - 1, offset, size)

    def _names(self, place: int) -> list[tuple[bytes, int]]:
        found = self._children.get(self._path(place))
        if found is None:
            raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        return found

    def _path(self, place: int) -> str:
        self.node(place)
        return "" if place == 0 else self._opened.entries[place - 1].path


def _node(number: int, mode: int, size: int = 0, target: bytes | None = None) -> Node:
    links = 2 if stat.S_ISDIR(mode) else 1
    return Node(number, mode, 0, 0, size, links, target, _MADE_NS, _MADE_NS, _MADE_NS)


__all__ = ["HELD_MAX", "MOUNT", "MOUNT_NAME", "Shelf"]
