"""The bytes of a volume's files: one sparse file of the host per inode, named by its number."""

from __future__ import annotations

import os
from collections import OrderedDict
from pathlib import Path

OPEN_MAX = 64
"""Descriptors kept open per volume."""

BIG = 4 << 20
"""Files from this size on take long to remove."""


class Blobs:
    """Files by number, below one directory. Used by one thread at a time."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._open: OrderedDict[int, int] = OrderedDict()
        self._doomed: list[int] = []

    def read(self, number: int, offset: int, size: int) -> bytes:
        """What is there, which may be less than ``size``; nothing of a file that was never written."""
        descriptor = self._descriptor(number, make=False)
        return b"" if descriptor is None else os.pread(descriptor, size, offset)

    def write(self, number: int, offset: int, data: bytes | memoryview) -> None:
        descriptor = self._descriptor(number, make=True)
        assert descriptor is not None
        rest = memoryview(data)
        while rest:
            put = os.pwrite(descriptor, rest, offset)
            rest, offset = rest[put:], offset + put

    def truncate(self, number: int, size: int) -> None:
        """Cut off what is beyond ``size``."""
        descriptor = self._descriptor(number, make=False)
        if descriptor is not None and os.fstat(descriptor).st_size > size:
            os.ftruncate(descriptor, size)

    def sync(self, number: int) -> None:
        descriptor = self._descriptor(number, make=False)
        if descriptor is not None:
            os.fdatasync(descriptor)

    def remove(self, number: int) -> None:
        """For good: numbers are never used again. A big file goes at the next :meth:`sweep`."""
        if (descriptor := self._open.pop(number, None)) is not None:
            os.close(descriptor)
        path = self._path(number)
        if path.exists() and path.stat().st_size >= BIG:
            self._doomed.append(number)
        else:
            path.unlink(missing_ok=True)

    @property
    def doomed(self) -> bool:
        """Whether big files wait to be removed. What is forgotten in a crash is found by :meth:`numbers`."""
        return bool(self._doomed)

    def sweep(self) -> None:
        while self._doomed:
            self._path(self._doomed.pop()).unlink(missing_ok=True)

    def numbers(self) -> set[int]:
        """Every number there is a file for."""
        return {int(path.name) for path in self._directory.glob("*/*")}

    def close(self) -> None:
        while self._open:
            os.close(self._open.popitem()[1])

    def _path(self, number: int) -> Path:
        return self._directory / f"{number % 256:02x}" / str(number)

    def _descriptor(self, number: int, *, make: bool) -> int | None:
        if (known := self._open.get(number)) is not None:
            self._open.move_to_end(number)
            return known
        path = self._path(number)
        flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | (os.O_CREAT if make else 0)
        try:
            descriptor = os.open(path, flags, 0o600)
        except FileNotFoundError:
            if not make:
                return None
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(path, flags, 0o600)
        self._open[number] = descriptor
        if len(self._open) > OPEN_MAX:
            os.close(self._open.popitem(last=False)[1])
        return descriptor
