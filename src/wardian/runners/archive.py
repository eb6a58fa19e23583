"""A release on its way to the server: a plain tar archive, made here and taken apart there."""

from __future__ import annotations

import io
import tarfile

from wardian.runners.manifest import BadRunner
from wardian.runners.tree import DIRECTORY, PROGRAM, Tree, check_bounds, check_kind, tree_of

ARCHIVE_BYTES_MAX = 32 << 20
_KINDS = {tarfile.REGTYPE: 0o100000, tarfile.AREGTYPE: 0o100000, tarfile.DIRTYPE: 0o040000}


def pack(tree: Tree) -> bytes:
    """Equal trees make equal archives."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for entry in tree.entries:
            member = tarfile.TarInfo(entry.path)
            member.mode, member.size = entry.mode & 0o777, entry.size
            member.type = tarfile.DIRTYPE if entry.mode == DIRECTORY else tarfile.REGTYPE
            tar.addfile(member, io.BytesIO(tree.contents.get(entry.path, b"")))
    return packed.getvalue()


def unpack(raw: bytes) -> Tree:
    """The tree in an archive. Raises :class:`BadRunner` for anything but plain files and directories, for a
    name that is there twice, and for what is out of bounds."""
    files: dict[str, tuple[bool, bytes]] = {}
    directories: list[str] = []
    total = 0
    try:
        with tarfile.open(fileobj=io.BytesIO(raw), mode="r:") as tar:
            for member in tar:
                path = member.name.removeprefix("./").rstrip("/")
                if path in ("", ".") and member.isdir():
                    continue
                kind = 0 if member.sparse is not None or member.size < 0 else _KINDS.get(member.type, 0)
                check_kind(path, kind | member.mode & 0o7777)
                total += member.size
                check_bounds(len(files) + len(directories) + 1, total)
                if path in files:
                    raise BadRunner(f"{path[:128]} is there twice", code="bad_path")
                if member.isdir():
                    directories.append(path)
                    continue
                content = tar.extractfile(member)
                assert content is not None
                files[path] = bool(member.mode & PROGRAM & 0o111), content.read()
    except (tarfile.TarError, OSError, ValueError, EOFError) as error:
        raise BadRunner(f"this is no tar archive, or a damaged one: {error}", code="bad_archive") from None
    return tree_of(files, directories)


__all__ = ["ARCHIVE_BYTES_MAX", "pack", "unpack"]
