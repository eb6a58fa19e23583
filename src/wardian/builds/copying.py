"""COPY: which files, to which place, as whom.

The rules are those of Docker and of the E2B builder where they agree. A directory's *content* goes into the
destination, and is merged with what is there; a destination that is not there becomes a directory like the
one copied. A file goes into the destination when that is a directory or is written with a slash at its end,
else it becomes the destination. Directories that are symlinks in the machine are followed, so a COPY to /bin
of a merged /usr does not put an end to it.
"""

from __future__ import annotations

import asyncio
import os
import posixpath
import re
import stat
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import IO

from wardian.builds.patterns import translate
from wardian.builds.trees import DIRECTORY, Item, Tree
from wardian.guest.carrying import CHUNK, Content, Node, Record
from wardian.images.erofs import TIMESTAMP
from wardian.model.errors import Invalid

PIECES = 16
MAGIC = re.compile(r"[*?\[]")


class NothingToCopy(Invalid):
    """No file is what the step names."""

    code = "nothing_to_copy"


class BadDestination(Invalid):
    """A destination that cannot take what is to be copied."""

    code = "bad_destination"


@dataclass(frozen=True, slots=True)
class Standing:
    """What a path is in the machine: ``kind`` is directory, file or absent; ``path`` has no symlink in it."""

    path: str
    kind: str


Stand = Callable[[str], Awaitable[Standing]]
"""Looks an absolute path up in the machine."""


@dataclass(frozen=True, slots=True)
class Placed:
    """An item and where it goes. ``source`` is its path in the tree, or None for a directory made on the
    way."""

    path: str
    item: Item
    source: str | None


async def lay_out(
    items: Mapping[str, Item], source: str, destination: str, *, into: bool, stand: Stand
) -> Sequence[Placed]:
    """Where everything goes that ``source`` names, parents first.

    ``destination`` is absolute; ``into`` says that it was written as a directory.
    """
    matches = matching(items, source)
    if not matches:
        raise NothingToCopy(f"there is no {source!r} among the files of this step")
    there = await stand(destination)
    brings_directory = any(not path or items[path].kind == "directory" for path in matches)
    if there.kind == "file" and (into or brings_directory or len(matches) > 1):
        raise BadDestination(f"{destination} is a file, so nothing can be copied into it")
    inside = into or brings_directory or len(matches) > 1 or there.kind == "directory"
    wanted: dict[str, Placed] = {}
    for match in matches:
        if match and items[match].kind != "directory":
            place = posixpath.join(destination, posixpath.basename(match)) if inside else destination
            wanted[place] = Placed(place, items[match], match)
            continue
        prefix = match + "/" if match else ""
        for path, item in items.items():
            if path.startswith(prefix):
                place = posixpath.join(destination, path[len(prefix) :])
                wanted[place] = Placed(place, item, path)
        is_made_like_it = match and there.kind == "absent"
        made = Placed(destination, items[match], match) if is_made_like_it else None
        wanted.setdefault(destination, made or Placed(destination, DIRECTORY, None))
    return await _settled(wanted, stand)


async def _settled(wanted: Mapping[str, Placed], stand: Stand) -> Sequence[Placed]:
    """``wanted`` at paths without symlinks, with the missing directories above; parents first."""
    settled: dict[str, Placed] = {}
    for path, placed in wanted.items():
        if placed.item.kind == "directory":
            there = await stand(path)
            if there.kind == "file":
                raise BadDestination(f"{path} is a file, and a directory is to be copied there")
            if placed.source is not None or there.kind == "absent":
                settled[there.path] = replace(placed, path=there.path)
            continue
        parent = await stand(posixpath.dirname(path))
        if parent.kind == "file":
            raise BadDestination(
                f"{posixpath.dirname(path)} is a file, and something is to be copied below it"
            )
        real = posixpath.join(parent.path, posixpath.basename(path))
        if (await stand(path)).kind == "directory":
            raise BadDestination(f"{path} is a directory, and a file is to be copied there")
        settled[real] = replace(placed, path=real)
    for path in list(settled):
        above = posixpath.dirname(path)
        while above != "/" and above not in settled and (await stand(above)).kind == "absent":
            settled[above] = Placed(above, DIRECTORY, None)
            above = posixpath.dirname(above)
    return [settled[path] for path in sorted(settled, key=order) if path != "/"]


def order(path: str) -> bytes:
    """Sorts paths as a layer has them: depth first, names as bytes."""
    return os.fsencode(path).replace(b"/", b"\0")


def matching(items: Mapping[str, Item], source: str) -> Sequence[str]:
    """The paths that ``source``, a path or a pattern, names. "" is the whole tree."""
    path = posixpath.normpath(source).lstrip("/")
    if path in (".", ""):
        return [""]
    if path in items:
        return [path]
    if not MAGIC.search(path):
        return []
    pattern = re.compile(translate(path))
    return [candidate for candidate in items if pattern.fullmatch(candidate)]


async def records(
    tree: Tree | None, placed: Sequence[Placed], *, owner: tuple[int, int] | None, mode: int | None
) -> AsyncIterator[Sequence[Record]]:
    """What goes where, as a machine unpacks it. Only files need a ``tree``.

    All of it becomes ``owner``'s (uid, gid); with None, everything stays whose it is.
    """
    for each in placed:
        node = _node(each, owner, mode)
        if not node.size:
            yield [node]
            continue
        assert tree is not None
        assert each.source is not None
        with tree.open(each.source) as content:
            batch: list[Record] = [node]
            offset = 0
            while pieces := await asyncio.to_thread(_pieces, content, offset):
                yield [*batch, *pieces]
                batch = []
                offset = pieces[-1].offset + len(pieces[-1].data)


def _pieces(content: IO[bytes], offset: int) -> Sequence[Content]:
    """About a megabyte of a file."""
    pieces: list[Content] = []
    while len(pieces) < PIECES and (data := content.read(CHUNK)):
        pieces.append(Content(offset, data))
        offset += len(data)
    return pieces


def _node(placed: Placed, owner: tuple[int, int] | None, mode: int | None) -> Node:
    item = placed.item
    uid, gid = (item.uid, item.gid) if owner is None else owner
    bits, size, target = item.mode, 0, b""
    if item.kind == "directory":
        kind = stat.S_IFDIR
        if mode is not None and placed.source is not None:
            bits = mode | (mode & 0o444) >> 2  # a directory that may be read may be entered
    elif item.kind == "symlink":
        kind, bits, target = stat.S_IFLNK, 0o777, os.fsencode(item.target)
    else:
        kind, size = stat.S_IFREG, item.size
        bits = bits if mode is None else mode
    path = os.fsencode(placed.path.lstrip("/"))
    return Node(path, kind | bits, uid, gid, TIMESTAMP * 10**9, size, target)
