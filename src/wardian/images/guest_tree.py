"""Hashes the files of the machine that it runs in. It runs inside sandboxes, as root, by their own Python.

What it prints equals ``wardian.images.erofs.Image.tree_digest(without=LEFT_OUT)`` of the root image, as long
as nothing has been changed: paths, types, permissions, owners and contents, not times.
"""

import hashlib
import os
import stat
from collections.abc import Iterator

LEFT_OUT = ("/dev", "/etc/hostname", "/etc/machine-id", "/proc", "/run", "/sys", "/tmp")
"""What a machine has of its own: its kernel's file systems, its temporary ones, and its name and number."""


def walk(top: str) -> Iterator[str]:
    """Every path, parents before children, each directory sorted."""
    pending = [top]
    while pending:
        path = pending.pop()
        if path in LEFT_OUT:
            continue
        yield path
        if stat.S_ISDIR(os.lstat(path).st_mode):
            base = path if path == "/" else path + "/"
            pending += sorted((base + name for name in os.listdir(path)), reverse=True)


def content(path: str, status: os.stat_result) -> str:
    """What a file holds, in a word."""
    if stat.S_ISDIR(status.st_mode):
        return ""
    if stat.S_ISLNK(status.st_mode):
        return hashlib.sha256(os.fsencode(os.readlink(path))).hexdigest()
    if stat.S_ISREG(status.st_mode):
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    return str(status.st_rdev)


def tree_digest() -> str:
    """``sha256:`` over all files but those left out."""
    digest = hashlib.sha256()
    for path in walk("/"):
        status = os.lstat(path)
        record = (path, f"{status.st_mode:o}", str(status.st_uid), str(status.st_gid), content(path, status))
        digest.update(b"\0".join(field.encode(errors="surrogateescape") for field in record) + b"\n")
    return f"sha256:{digest.hexdigest()}"


if __name__ == "__main__":
    print(tree_digest())  # noqa: T201
