"""A file of a snapshot, compressed: one zstd frame of its bytes, holes as zeros, in ``<name>.zst``.

Compressing takes seconds of a processor, so a process of its own does it, with the lowest priority: a thread
with it would hold up the whole server whenever it held the interpreter's lock and was not given a processor.

    python -m wardian.snapshots.packed SOURCE TARGET DIGEST

writes TARGET durably, if it is not there, and ends with 0 if what it holds is SOURCE's bytes, by DIGEST; with
``REFUSED`` if not; else with the number of the error.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import zstandard

from wardian.snapshots.digests import BLOCK, ZEROS, Digest, blocks_of, blocks_of_file

SUFFIX = ".zst"
REFUSED = 200
LEVEL = 3
"""Half as large again at level 1, a tenth smaller at level 9, which takes six times as long."""
WINDOW_MAX = 8 << 20
"""What a frame may ask a reader to remember: bytes. Level 3 asks for 2 MiB."""
_PAGE = 4096
_NICEST = 19


class NotWhatItWas(Exception):
    """The bytes, or their number, are others than they should be."""


def pack(source: Path, target: Path, digest: str, *, go_on: Callable[[], bool] = lambda: True) -> None:
    """Compress ``source`` into the new file ``target``, durably and with its mode.

    Raises :class:`NotWhatItWas` unless its digest is ``digest``, and when told not to ``go_on``.
    """
    hashed, at = Digest.like(digest), 0
    with source.open("rb", buffering=0) as plain, _created(target, plain.fileno()) as descriptor:
        with open(descriptor, "wb", closefd=False) as packed:
            compressor = zstandard.ZstdCompressor(level=LEVEL)
            with compressor.stream_writer(packed, closefd=False) as writer:
                for chunk in blocks_of_file(plain.fileno()):
                    if not go_on():
                        raise NotWhatItWas("nobody waits for it any more")
                    hashed.add(at // BLOCK, chunk)
                    at += len(chunk)
                    writer.write(chunk)
        os.fsync(descriptor)
    if hashed.of(at) != digest:
        raise NotWhatItWas(f"{source.name} is not what was written")


def unpack(source: Path, target: Path, size: int, digest: str) -> None:
    """Expand ``source`` into the new file ``target``, with its mode; pages of zeros become holes.

    Raises :class:`NotWhatItWas` unless it comes to ``size`` bytes with this ``digest``: never more than
    ``size`` are written.
    """
    with source.open("rb", buffering=0) as packed, _created(target, packed.fileno()) as descriptor:
        os.ftruncate(descriptor, size)
        at = 0
        for chunk in _verified(source, size, digest):
            _write_data(descriptor, chunk, at)
            at += len(chunk)


def check(source: Path, size: int, digest: str) -> None:
    """Raise :class:`NotWhatItWas` unless ``source`` expands to ``size`` bytes with this ``digest``."""
    for _ in _verified(source, size, digest):
        pass


def _verified(source: Path, size: int, digest: str) -> Iterator[bytes]:
    """What ``source`` expands to, in pieces of a chunk; after the last it was what it should be."""
    hashed, at = Digest.like(digest), 0
    with source.open("rb", buffering=0) as packed:
        try:
            reader = zstandard.ZstdDecompressor(max_window_size=WINDOW_MAX).stream_reader(packed)
            for chunk in blocks_of(reader.read):
                if at + len(chunk) > size:
                    raise NotWhatItWas(f"{source.name} expands to more than {size} bytes")
                hashed.add(at // BLOCK, chunk)
                at += len(chunk)
                yield chunk
        except zstandard.ZstdError as error:
            raise NotWhatItWas(f"{source.name} cannot be expanded: {error}") from error
    if at != size or hashed.of(at) != digest:
        raise NotWhatItWas(f"{source.name} does not expand to what was written")


def _write_data(descriptor: int, chunk: bytes, at: int) -> None:
    """Write the pages of ``chunk`` that are not all zeros, each run of them at once."""
    if chunk == ZEROS[: len(chunk)]:
        return
    data, begin = memoryview(chunk), 0
    for offset in range(0, len(chunk), _PAGE):
        page = chunk[offset : offset + _PAGE]
        if page == ZEROS[: len(page)]:
            _write(descriptor, data[begin:offset], at + begin)
            begin = offset + len(page)
    _write(descriptor, data[begin:], at + begin)


def _write(descriptor: int, data: memoryview, at: int) -> None:
    while data:
        count = os.pwrite(descriptor, data, at)
        data, at = data[count:], at + count


@contextmanager
def _created(path: Path, like: int) -> Iterator[int]:
    """A new file with the mode of the open file ``like``; gone again on failure."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.fchmod(descriptor, os.fstat(like).st_mode & 0o777)
        yield descriptor
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    finally:
        os.close(descriptor)


def main(source: str, target: str, digest: str) -> None:
    """What the process does, with the lowest priority and until its parent ends."""
    os.nice(_NICEST)
    parent, plain, packed = os.getppid(), Path(source), Path(target)
    if not packed.exists():
        pack(plain, packed, digest, go_on=lambda: os.getppid() == parent)
    check(packed, plain.stat().st_size, digest)


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except NotWhatItWas as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(REFUSED)
    except OSError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(error.errno)
