"""Looks for secrets in images: what a build was lent must not be found in what it made.

In contents, link targets and names; as they are, quoted for a URL, and in base64, also in the middle of
something longer; in compressed files too.
"""

from __future__ import annotations

import base64
import bz2
import gzip
import io
import lzma
import stat
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote_from_bytes

import zstandard

from wardian.images.erofs import Image

SHORTEST = 6
"""Shorter values (a port, "on") are everywhere, and no secrets."""

UNPACKED_MAX = 64 << 20


def leaks(
    image: Path, secrets: Mapping[str, str | bytes], *, but_for: Iterable[str] = ()
) -> list[tuple[str, str]]:
    """Where in a root image something secret is, as (path, its name): in contents, targets and names.

    Paths that begin with one of ``but_for`` are what packages themselves carry. Nothing secret is in the
    answer, so that a test may show it.
    """
    wanted = {name: tuple(shapes(each)) for name, each in secrets.items() if len(each) >= SHORTEST}
    ignored = tuple(but_for)
    found = []
    with Image(image) as files:
        for node in files.walk():
            if ignored and node.path.startswith(ignored):
                continue
            has_content = stat.S_ISREG(node.mode) or stat.S_ISLNK(node.mode)
            held = [
                node.path.encode(errors="surrogateescape"),
                *plain(files.read(node) if has_content else b""),
            ]
            found += [
                (node.path, name)
                for name, written in wanted.items()
                if any(shape in each for shape in written for each in held)
            ]
    return found


def shapes(secret: str | bytes) -> Iterator[bytes]:
    """How a secret may be written."""
    raw = secret.encode() if isinstance(secret, str) else secret
    yield raw
    if len(raw) > 4096:
        return  # a file: it is searched for as it is
    yield quote_from_bytes(raw, safe="").encode()
    for shift in range(3):
        # Whatever stands beside the secret decides the digits at both ends: those are cut.
        digits = base64.b64encode(bytes(shift) + raw + bytes(-(shift + len(raw)) % 3))
        inner = digits[4 if shift else 0 :][: 4 * ((len(raw) - (3 - shift) % 3) // 3)]
        if len(inner) >= 8:
            yield inner


def plain(data: bytes) -> Iterator[bytes]:
    """What a file holds, and what it holds packed; nothing more of one that is damaged."""
    yield data
    with suppress(
        OSError, EOFError, ValueError, RuntimeError, lzma.LZMAError, zlib.error, zstandard.ZstdError
    ):
        for magic, unpack in PACKED.items():
            if data.startswith(magic):
                with unpack(io.BytesIO(data)) as packed:
                    yield packed.read(UNPACKED_MAX)
        if data.startswith(b"PK\x03\x04"):
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                for member in archive.infolist():
                    if member.file_size <= UNPACKED_MAX:
                        yield archive.read(member)


DAMAGED = (OSError, EOFError, ValueError, RuntimeError, lzma.LZMAError, zlib.error, zstandard.ZstdError)
PACKED: Mapping[bytes, Callable[[IO[bytes]], Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\0": lzma.open,
    b"\x28\xb5\x2f\xfd": zstandard.ZstdDecompressor().stream_reader,
}
"""How packed files begin, and what reads them."""
