"""Paths within a volume, resolved as if its root were ``/``: neither ``..`` nor any link leads out of it."""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass

from wardian.volumes.rows import Node
from wardian.volumes.tree import FIRST_OWNER, ROOT, Tree

PATH_BYTES_MAX = 4096
LINKS_FOLLOWED_MAX = 40


@dataclass(frozen=True, slots=True)
class Place:
    """Where a path leads: a name in a directory, and what is there. The root has no name."""

    parents: tuple[tuple[int, bytes], ...]  # from the root's child down: number and name of each directory
    name: bytes
    node: Node | None

    @property
    def parent(self) -> int:
        return self.parents[-1][0] if self.parents else ROOT

    @property
    def path(self) -> str:
        names = [name for _, name in self.parents] + ([self.name] if self.name else [])
        return "/" + "/".join(text(name) for name in names)


def text(name: bytes) -> str:
    """A name for people and JSON."""
    return name.decode("utf-8", "replace")


def resolve(tree: Tree, path: str, *, follow: bool = True, make_parents: bool = False) -> Place:
    """Find a path. What is missing is told by ``node`` None if it is the last part, else by ENOENT.

    ``follow`` is about a link that the whole path names; ``make_parents`` makes missing directories above it.
    """
    encoded = path.encode("utf-8", "surrogateescape")
    if len(encoded) > PATH_BYTES_MAX:
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
    if b"\0" in encoded:
        raise OSError(errno.EINVAL, "a path has no NUL")
    ahead = _parts(encoded)
    above: list[tuple[int, bytes]] = []
    followed = 0
    while ahead:
        name = ahead.pop()
        if name == b"..":
            if above:
                above.pop()
            continue
        parent = above[-1][0] if above else ROOT
        node = _lookup(tree, parent, name)
        if node is not None and node.is_link and (ahead or follow):
            followed += 1
            if followed > LINKS_FOLLOWED_MAX:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
            target = node.target or b""
            if target.startswith(b"/"):
                above.clear()
            ahead += _parts(target)
            continue
        if not ahead:
            return Place(tuple(above), name, node)
        if node is None:
            if not make_parents:
                raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
            node = tree.make(parent, name, stat.S_IFDIR | 0o755, FIRST_OWNER, FIRST_OWNER)
        if not node.is_directory:
            raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        above.append((node.number, name))
    if above:
        number, name = above.pop()
        return Place(tuple(above), name, tree.node(number))
    return Place((), b"", tree.node(ROOT))


def _parts(path: bytes) -> list[bytes]:
    """The parts still to go, the next one last."""
    return [part for part in reversed(path.split(b"/")) if part not in (b"", b".")]


def _lookup(tree: Tree, parent: int, name: bytes) -> Node | None:
    try:
        return tree.lookup(parent, name)
    except FileNotFoundError:
        return None
