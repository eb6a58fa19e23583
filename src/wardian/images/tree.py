"""A file system that exists only as a value: names, attributes, and where each content lies.

Images and layers are put together here, never on the host's file system: there is no path to traverse and no
symlink to follow but the tree's own, and nobody needs to be root.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from wardian.guest.carrying import NAME_MAX, PATH_MAX
from wardian.images import tar
from wardian.images.erofs import Image
from wardian.images.layers import OPAQUE, WHITEOUT

LINKS_MAX = 40
DEPTH_MAX = 512


@dataclass(frozen=True, slots=True)
class Span:
    """Bytes of a source file: which one (its index), where, how many."""

    source: int
    offset: int
    size: int


Content = tuple[Span | bytes, ...]


@dataclass(eq=False, slots=True)
class Inode:
    """Anything with attributes. The same object under several names is what hard links are."""

    mode: int
    uid: int = 0
    gid: int = 0
    mtime_ns: int = 0
    device: tuple[int, int] = (0, 0)
    target: bytes = b""
    content: Content = ()
    children: dict[bytes, Inode] = field(default_factory=dict)

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.mode)

    @property
    def size(self) -> int:
        """Bytes of a file's content or of a symlink's target."""
        if stat.S_ISLNK(self.mode):
            return len(self.target)
        return sum(piece.size if isinstance(piece, Span) else len(piece) for piece in self.content)


class Tree:
    """A root directory and what is below. Starts empty."""

    def __init__(self) -> None:
        self.root = Inode(stat.S_IFDIR | 0o755)

    def walk(self) -> Iterator[tuple[bytes, Inode]]:
        """Every path (without a leading slash, the root is b"") and its inode; parents first, sorted."""
        pending = [(b"", self.root)]
        while pending:
            path, inode = pending.pop()
            yield path, inode
            before = path + b"/" if path else b""
            pending += [
                (before + name, inode.children[name]) for name in sorted(inode.children, reverse=True)
            ]

    def find(self, path: bytes) -> Inode | None:
        """What is at this very path; symlinks are not followed."""
        inode = self.root
        for name in path.split(b"/") if path else ():
            found = inode.children.get(name)
            if found is None:
                return None
            inode = found
        return inode

    def resolve(self, path: bytes) -> tuple[bytes, Inode | None]:
        """Where ``path`` leads, symlinks followed within the tree: the real path, and what is there, if
        anything. What is missing is taken as it is written.
        """
        trail = _follow(self, path.split(b"/"), make=False)
        return b"/".join(name for name, _ in trail[1:]), trail[-1][1]

    def remove(self, path: bytes) -> None:
        """Take it away with all below. Nothing happens when it is not there."""
        parent, _, name = path.rpartition(b"/")
        directory = self.find(parent)
        if directory is not None:
            directory.children.pop(name, None)


def tree_of_image(image: Image, source: int) -> Tree:
    """The tree in an EROFS image, whose file becomes source number ``source``."""
    tree, inodes = Tree(), dict[int, Inode]()
    directories: dict[bytes, Inode] = {}
    for node in image.walk():
        path = os.fsencode(node.path).strip(b"/")
        inode = inodes.get(node.number)
        if inode is None:
            inode = inodes[node.number] = Inode(node.mode, node.uid, node.gid, node.mtime_ns)
            if stat.S_ISLNK(node.mode):
                inode.target = image.read(node)
            elif stat.S_ISREG(node.mode):
                inode.content = (Span(source, node.block * image.block_size, node.size),) if node.size else ()
            elif not inode.is_directory:
                inode.device = device_numbers(node.block)
        if inode.is_directory:
            directories[path] = inode
        if path:
            parent, _, name = path.rpartition(b"/")
            directories[parent].children[name] = inode
        else:
            tree.root = inode
    return tree


def device_numbers(packed: int) -> tuple[int, int]:
    """Major and minor out of Linux's packed form."""
    return packed >> 8 & 0xFFF, packed & 0xFF | packed >> 12 & 0xFFF00


def pack_device(device: tuple[int, int]) -> int:
    """Linux's packed form."""
    major, minor = device
    return minor & 0xFF | major << 8 | (minor & ~0xFF) << 12


def lay_over(tree: Tree, members: Sequence[tar.Member], source: int) -> None:
    """Apply a layer with OCI whiteouts: first what it takes away from below, then what it brings.

    ``source`` is the number of its file. Raises :class:`~wardian.images.tar.BadArchive` for a path that leads
    out of the tree, a hard link to nothing, and the like.
    """
    overlay = _Overlay(tree, source)
    split = [(_components(member.path), member) for member in members]
    for names, _ in split:
        if names and names[-1].startswith(WHITEOUT):
            overlay.take_away(names)
    for names, member in split:
        if not names or not names[-1].startswith(WHITEOUT):
            overlay.bring(names, member)


class _Overlay:
    def __init__(self, tree: Tree, source: int) -> None:
        self._tree, self._source = tree, source
        self._parents: dict[tuple[bytes, ...], Inode] = {}

    def take_away(self, names: list[bytes]) -> None:
        directory = self._find_directory(names[:-1])
        if directory is None:
            return
        if names[-1] == OPAQUE:
            directory.children.clear()
        else:
            directory.children.pop(names[-1].removeprefix(WHITEOUT), None)

    def bring(self, names: list[bytes], member: tar.Member) -> None:
        if not names:
            if not stat.S_ISDIR(member.mode):
                raise tar.BadArchive("the root of a layer is not a directory")
            self._adorn(self._tree.root, member)
            return
        parent = self._parent(names[:-1])
        if member.hard:
            parent.children[names[-1]] = self._linked(member)
            self._parents.clear()
            return
        there = parent.children.get(names[-1])
        if stat.S_ISDIR(member.mode) and there is not None and there.is_directory:
            self._adorn(there, member)
            return
        if there is not None and (there.is_directory or stat.S_ISLNK(there.mode)):
            self._parents.clear()  # a path may lead elsewhere now
        parent.children[names[-1]] = self._inode(member)

    def _inode(self, member: tar.Member) -> Inode:
        inode = Inode(member.mode, device=member.device)
        self._adorn(inode, member)
        if stat.S_ISLNK(member.mode):
            inode.mode = stat.S_IFLNK | 0o777
            if not 0 < len(member.link) <= PATH_MAX or b"\0" in member.link:
                raise tar.BadArchive("a symlink with an improper target")
            inode.target = member.link
        elif member.size:
            inode.content = (Span(self._source, member.offset, member.size),)
        return inode

    def _adorn(self, inode: Inode, member: tar.Member) -> None:
        inode.mode, inode.uid, inode.gid = member.mode, member.uid, member.gid
        inode.mtime_ns = member.mtime_ns

    def _linked(self, member: tar.Member) -> Inode:
        names = _components(member.link)
        directory = self._find_directory(names[:-1])
        inode = directory.children.get(names[-1]) if directory is not None and names else None
        if inode is None or inode.is_directory:
            shown = member.link[:200].decode("utf-8", "replace")
            raise tar.BadArchive(f"a hard link to {shown!r}, which is no file")
        return inode

    def _parent(self, names: list[bytes]) -> Inode:
        """The directory of that path, made where it is missing. The tree's own symlinks are followed."""
        key = tuple(names)
        if key not in self._parents:
            found = _follow(self._tree, names, make=True)[-1][1]
            assert found is not None
            self._parents[key] = found
        return self._parents[key]

    def _find_directory(self, names: list[bytes]) -> Inode | None:
        found = _follow(self._tree, names, make=False)[-1][1]
        return found if found is not None and found.is_directory else None


def _follow(tree: Tree, names: Sequence[bytes], *, make: bool) -> list[tuple[bytes, Inode | None]]:
    """Follow a path as inside a machine with this tree as its root: each name on the way, and what it is.

    What is missing is None or, with ``make``, made as a directory; then all on the way has to be one.
    """
    trail: list[tuple[bytes, Inode | None]] = [(b"", tree.root)]
    rest, links = list(reversed(names)), 0
    while rest:
        name, above = rest.pop(), trail[-1][1]
        if name in (b"", b"."):
            continue
        if name == b"..":
            del trail[max(1, len(trail) - 1) :]
            continue
        there = above.children.get(name) if above is not None else None
        if there is not None and stat.S_ISLNK(there.mode):
            links += 1
            if links > LINKS_MAX:
                raise tar.BadArchive("too many symlinks on the way to an entry")
            if there.target.startswith(b"/"):
                del trail[1:]
            rest += reversed(there.target.split(b"/"))
            continue
        if make and above is not None:
            there = above.children.setdefault(name, Inode(stat.S_IFDIR | 0o755))
            if not there.is_directory:
                shown = name[:200].decode("utf-8", "replace")
                raise tar.BadArchive(f"{shown!r} is no directory, and something lies in it")
        trail.append((name, there))
        if len(trail) > DEPTH_MAX:
            raise tar.BadArchive(f"directories nested deeper than {DEPTH_MAX}")
    return trail


def _components(path: bytes) -> list[bytes]:
    """The names of an archive's path. Raises BadArchive when it is absolute, leads up or is out of bounds."""
    names = [name for name in path.split(b"/") if name not in (b"", b".")]
    if path.startswith(b"/") or b".." in names or b"\0" in path or len(path) > PATH_MAX:
        raise tar.BadArchive(f"an entry with the improper path {path[:200]!r}")
    if len(names) > DEPTH_MAX or any(len(name) > NAME_MAX for name in names):
        raise tar.BadArchive(f"an entry with too long a path, {path[:200]!r}")
    return names
