"""What each request of the content API does to a tree. Runs off the event loop; errors are ``OSError``."""

from __future__ import annotations

import errno
import os
import stat
from datetime import UTC, datetime
from typing import Any

from wardian.api.volumes.query import Query
from wardian.volumes.paths import Place, resolve, text
from wardian.volumes.rows import Node
from wardian.volumes.tree import FIRST_OWNER, Tree

ENTRIES_MAX = 100_000
"""Of one listing, however deep."""

_TYPES = {stat.S_IFDIR: "directory", stat.S_IFREG: "file", stat.S_IFLNK: "symlink"}


def describe(tree: Tree, *, path: str) -> dict[str, Any]:
    """``VolumeEntryStat``; of a link, not of what it leads to."""
    place = resolve(tree, path, follow=False)
    return _told(place.path, place.name, _there(place))


def change(tree: Tree, *, asked: Query) -> dict[str, Any]:
    place = resolve(tree, asked.path)
    node = tree.change(_there(place).number, uid=asked.uid, gid=asked.gid, mode=asked.mode)
    return _told(place.path, place.name, node)


def remove(tree: Tree, *, path: str) -> None:
    """A file, or a directory with all that is in it."""
    place = resolve(tree, path, follow=False)
    _there(place)
    if not place.name:
        raise OSError(errno.EPERM, "the root of a volume stays")
    tree.remove_all(place.parent, place.name)


def listing(tree: Tree, *, asked: Query) -> list[dict[str, Any]]:
    """What is below a directory, ``depth`` layers deep, a directory before its entries."""
    place = resolve(tree, asked.path)
    told: list[dict[str, Any]] = []

    def walk(number: int, path: str, depth: int) -> None:
        for name, node in tree.list(number, limit=ENTRIES_MAX + 1 - len(told)):
            if len(told) >= ENTRIES_MAX:
                raise OSError(errno.EFBIG, f"more than {ENTRIES_MAX} entries")
            below = f"{path.rstrip('/')}/{text(name)}"
            told.append(_told(below, name, node))
            if node.is_directory and depth > 1:
                walk(node.number, below, depth - 1)

    walk(_there(place).number, place.path, asked.depth)
    return told


def make_directory(tree: Tree, *, asked: Query) -> dict[str, Any]:
    """``force`` makes the parents too, and does not mind a directory that is there."""
    place = resolve(tree, asked.path, make_parents=asked.force)
    if place.node is not None:
        if not (asked.force and place.node.is_directory):
            raise OSError(errno.EEXIST, os.strerror(errno.EEXIST))
        return _told(place.path, place.name, place.node)
    mode = stat.S_IFDIR | (0o755 if asked.mode is None else asked.mode)
    return _told(place.path, place.name, tree.make(place.parent, place.name, mode, *_owner(asked)))


def open_file(tree: Tree, *, path: str) -> Node:
    """The file, held: its reader releases it."""
    node = _there(resolve(tree, path))
    tree.read(node.number, 0, 0)  # says what is not a file
    tree.hold(node.number)
    return node


def begin_file(tree: Tree, *, asked: Query, size: int) -> int:
    """A draft for the new content, held; refused at once where it cannot get its name or its room."""
    old = _written(tree, asked).node
    if tree.usage[0] + size > tree.limits.bytes_max:
        raise OSError(errno.ENOSPC, "the volume is full")
    uid, gid = _owner(asked)
    mode = 0o644 if asked.mode is None else asked.mode
    if old is not None:
        uid = old.uid if asked.uid is None else uid
        gid = old.gid if asked.gid is None else gid
        mode = stat.S_IMODE(old.mode) if asked.mode is None else mode
    return tree.draft(mode, uid, gid).number


def finish_file(tree: Tree, *, asked: Query, draft: int) -> dict[str, Any]:
    place = _written(tree, asked)
    tree.publish(draft, place.parent, place.name)
    return _told(place.path, place.name, tree.node(draft))


def _written(tree: Tree, asked: Query) -> Place:
    """Where an upload goes. ``force`` makes the parents, and replaces a file that is there."""
    place = resolve(tree, asked.path, make_parents=asked.force)
    if place.node is not None and place.node.is_directory:
        raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
    if place.node is not None and not asked.force:
        raise OSError(errno.EEXIST, "the file exists; force=true replaces it")
    return place


def _there(place: Place) -> Node:
    if place.node is None:
        raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
    return place.node


def _owner(asked: Query) -> tuple[int, int]:
    """Who owns what is made: programs in sandboxes, unless said otherwise."""
    return (
        FIRST_OWNER if asked.uid is None else asked.uid,
        FIRST_OWNER if asked.gid is None else asked.gid,
    )


def _told(path: str, name: bytes, node: Node) -> dict[str, Any]:
    told: dict[str, Any] = {
        "name": text(name) or "/",
        "type": _TYPES.get(stat.S_IFMT(node.mode), "unknown"),
        "path": path,
        "size": node.size,
        "mode": stat.S_IMODE(node.mode),
        "uid": node.uid,
        "gid": node.gid,
        "atime": _instant(node.atime),
        "mtime": _instant(node.mtime),
        "ctime": _instant(node.ctime),
    }
    if node.target is not None:
        told["target"] = text(node.target)
    return told


def _instant(ns: int) -> str:
    """RFC 3339; what a guest set beyond the calendar is told as its end."""
    seconds = min(max(ns // 10**9, -62135596800), 253402300799)
    return datetime.fromtimestamp(seconds, UTC).replace(microsecond=ns // 1000 % 10**6).isoformat()
