"""Root images out of a base and layers: put together as a tree, cleaned, written as EROFS.

The same base and layers give the same bytes. What a build leaves behind by chance (caches, logs, an id of the
machine, bytecode that names a time) is taken away by a :class:`Clean`; times of modification are all one and
the same. Extended attributes do not go into images: gVisor cannot read an image that has any.
"""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from wardian.images import tar
from wardian.images.digests import file_digest
from wardian.images.erofs import TIMESTAMP, Image, ImageUnusable
from wardian.images.erofs_writer import write_image_file
from wardian.images.tree import Inode, Span, Tree, lay_over, tree_of_image
from wardian.store.durable import sync

SIZE_MAX = 1 << 40


@dataclass(frozen=True, slots=True)
class Composed:
    """A written image. Both digests are ``sha256:<hex>``: of the file, and of the files in it."""

    digest: str
    tree: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Clean:
    """What is normalised away. Shell patterns, name by name (``*`` stops at ``/``; ``**`` is any depth).

    ``remove`` takes away, ``empty`` keeps the file without its content. With ``bytecode``, Python bytecode
    that is not tied to the image's one time of modification (or to its source's hash) goes: it would never be
    used.
    """

    remove: tuple[str, ...] = (
        "dev/*",
        "proc/*",
        "run/*",
        "sys/*",
        "home/*/.cache",
        "home/*/.npm",
        "root/.cache",
        "root/.npm",
        "tmp/hsperfdata_*",
        "tmp/npm-*",
        "tmp/pip-*",
        "tmp/v8-compile-cache-*",
        "var/cache/apt/*",
        "var/cache/debconf/*-old",
        "var/cache/ldconfig/aux-cache",
        "var/lib/apt/lists/*",
        "var/lib/dpkg/*-old",
        "var/log/**/*.gz",
    )
    empty: tuple[str, ...] = ("etc/machine-id", "var/lib/dbus/machine-id", "var/log/**/*")
    bytecode: bool = True


def compose_root(base: Path, layers: Sequence[Path], out: Path, *, clean: Clean | None = None) -> Composed:
    """Write the image of ``base`` with ``layers`` over it to ``out`` (replaced at once). Blocks.

    1 GB takes seconds. Without ``clean`` only times are normalised. Raises
    :class:`~wardian.images.tar.BadArchive` and :class:`~wardian.images.erofs.ImageUnusable`.
    """
    with Image(base) as image:
        tree = tree_of_image(image, 0)
    return _compose(tree, [base], layers, out, clean)


def root_from_layers(layers: Sequence[Path], out: Path, *, clean: Clean | None = None) -> Composed:
    """The same from nothing: ``layers`` are tar files, lowest first, with OCI whiteouts, maybe hostile."""
    return _compose(Tree(), [], layers, out, clean)


def _compose(
    tree: Tree, sources: list[Path], layers: Sequence[Path], out: Path, clean: Clean | None
) -> Composed:
    lay_layers(tree, layers, len(sources))
    if clean is not None:
        tidy(tree, clean, [*sources, *layers])
    return write_root(tree, [*sources, *layers], out)


def lay_layers(
    tree: Tree,
    layers: Sequence[Path],
    first: int = 0,
    *,
    fit: Callable[[tar.Member], tar.Member | None] = lambda member: member,
) -> None:
    """Apply tar files to ``tree``, the lowest first; they become its sources from number ``first`` on.

    ``fit`` changes a member or leaves it out. Raises :class:`~wardian.images.tar.BadArchive`.
    """
    left = tar.MEMBERS_MAX
    for number, layer in enumerate(layers, first):
        members = tar.members_in(layer)
        left -= len(members)
        if left < 0:
            raise tar.BadArchive(f"more than {tar.MEMBERS_MAX} entries in the layers")
        lay_over(tree, [fitted for member in members if (fitted := fit(member)) is not None], number)


def write_root(tree: Tree, sources: Sequence[Path], out: Path) -> Composed:
    """Write ``tree`` as the image ``out`` (replaced at once), and check it. Blocks.

    Raises :class:`~wardian.images.erofs.ImageUnusable`.
    """
    if sum(inode.size for _, inode in tree.walk()) > SIZE_MAX:
        raise ImageUnusable(f"the files are larger than {SIZE_MAX} bytes")
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as scratch:
        draft = Path(scratch) / "image"
        write_image_file(tree, sources, draft)
        composed = _checked(draft)
        draft.replace(out)
    sync(out.parent)
    return composed


def _checked(image: Path) -> Composed:
    """Read the image back: what was written is what any reader will find."""
    with Image(image) as opened:
        for problem in opened.problems():
            raise ImageUnusable(problem)
        tree = opened.tree_digest()
    return Composed(file_digest(image), tree, image.stat().st_size)


# -- cleaning


def tidy(tree: Tree, clean: Clean, sources: Sequence[Path]) -> None:
    """Take away what ``clean`` says. ``sources`` are the files that the tree's contents lie in."""
    for pattern in clean.remove:
        for directory, name, _ in list(_matches(tree.root, os.fsencode(pattern).split(b"/"))):
            directory.children.pop(name, None)
    for pattern in clean.empty:
        for _, _, inode in _matches(tree.root, os.fsencode(pattern).split(b"/")):
            if stat.S_ISREG(inode.mode):
                inode.content = ()
    if clean.bytecode:
        _drop_bytecode(tree, sources)


def _matches(directory: Inode, pattern: Sequence[bytes]) -> Iterator[tuple[Inode, bytes, Inode]]:
    """(directory, name, inode) of everything that the pattern names."""
    first, *rest = pattern
    if first == b"**":
        yield from _matches(directory, rest)
        for inode in list(directory.children.values()):
            if inode.is_directory:
                yield from _matches(inode, pattern)
        return
    for name, inode in list(directory.children.items()):
        if not fnmatchcase(name, first):
            continue
        if not rest:
            yield directory, name, inode
        elif inode.is_directory:
            yield from _matches(inode, rest)


def _drop_bytecode(tree: Tree, sources: Sequence[Path]) -> None:
    descriptors = [os.open(source, os.O_RDONLY) for source in sources]
    try:
        for directory, name, inode in list(_matches(tree.root, [b"**", b"*.pyc"])):
            if stat.S_ISREG(inode.mode) and _stale(inode, descriptors):
                directory.children.pop(name, None)
    finally:
        for descriptor in descriptors:
            with suppress(OSError):
                os.close(descriptor)


def _stale(inode: Inode, descriptors: Sequence[int]) -> bool:
    """Whether this bytecode names a time that its source will not have. Bytes 4-8: flags, 8-12: the time."""
    piece = inode.content[0] if inode.content else b""
    head = piece[:16] if isinstance(piece, bytes) else _head(piece, descriptors)
    if len(head) < 16:
        return True
    hashed = int.from_bytes(head[4:8], "little") & 1
    return not hashed and int.from_bytes(head[8:12], "little") != TIMESTAMP


def _head(span: Span, descriptors: Sequence[int]) -> bytes:
    return os.pread(descriptors[span.source], min(16, span.size), span.offset)
