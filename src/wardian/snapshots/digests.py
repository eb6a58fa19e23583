"""Digests of the files of snapshots: every byte counts, but zeros cost nothing.

A file is taken in blocks of 1 MiB. ``sha256-blocks:<hex>`` is the SHA-256 of, for each block that is not all
zeros, its number (8 bytes, big-endian) and its bytes; then the size of the file (8 bytes). So two files have
the same digest only if they have the same bytes, whichever of them are holes. ``sha256:<hex>``, of the bytes
one after the other, is what snapshots of format 1 have.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path

BLOCK = 1 << 20
ZEROS = bytes(BLOCK)
BLOCKS, PLAIN = "sha256-blocks:", "sha256:"


class Digest:
    """Takes the blocks of a file in order; ``kind`` is how its digest begins."""

    def __init__(self, kind: str = BLOCKS) -> None:
        self._kind, self._hash = kind, sha256()

    @classmethod
    def like(cls, digest: str) -> Digest:
        """Of the kind that ``digest`` is of."""
        return cls(PLAIN if digest.startswith(PLAIN) else BLOCKS)

    def add(self, number: int, block: bytes) -> None:
        """The next block, which has that number."""
        if self._kind == PLAIN:
            self._hash.update(block)
        elif block != ZEROS[: len(block)]:
            self._hash.update(number.to_bytes(8, "big"))
            self._hash.update(block)

    def of(self, size: int) -> str:
        """The digest, of a file with that many bytes."""
        if self._kind == BLOCKS:
            self._hash.update(size.to_bytes(8, "big"))
        return self._kind + self._hash.hexdigest()


def digest_of_file(path: Path, like: str = BLOCKS) -> str:
    """The digest of a file, of the kind that ``like`` is of."""
    digest = Digest.like(like)
    with path.open("rb", buffering=0) as file:
        for number, block in enumerate(blocks_of_file(file.fileno())):
            digest.add(number, block)
        return digest.of(os.fstat(file.fileno()).st_size)


def blocks_of_file(descriptor: int) -> Iterator[bytes]:
    """The blocks of a file. Holes are not read, which would fill the host's cache with zeros."""
    size, data = os.fstat(descriptor).st_size, -1
    for at in range(0, size, BLOCK):
        if data < at:
            data = _next_data(descriptor, at, size)
        length = min(BLOCK, size - at)
        yield os.pread(descriptor, length, at) if data < at + length else ZEROS[:length]


def _next_data(descriptor: int, at: int, size: int) -> int:
    """Where the next data of a file are, from ``at`` on; its ``size`` if there are none."""
    try:
        return os.lseek(descriptor, at, os.SEEK_DATA)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        return size


def blocks_of(read: Callable[[int], bytes]) -> Iterator[bytes]:
    """What ``read`` gives, in whole blocks but for the last."""
    while block := read(BLOCK):
        while len(block) < BLOCK and (more := read(BLOCK - len(block))):
            block += more
        yield block
