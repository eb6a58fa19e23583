"""The files that builds copy from: archives that clients upload, kept per template.

    <directory>/<template id>/<name>-<digest>.tar

``name`` is what the client calls the archive: E2B's SDKs hash their list of files, which we cannot check, so
a name says nothing outside of its template. ``digest`` is ours, of the files in it: equal files have an equal
one, whenever and by whomever they were packed. An archive that is named after its own bytes, as our command
line's are, keeps that name: whom its files belong to counts then. What is kept has been read from end to end,
and is not compressed: a build may look into it in any order.

An upload is allowed by a ticket, which opens the door once. Tickets are kept in memory only.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import tempfile
import time
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import IO

from wardian.builds.trees import BYTES_MAX, BadArchive, archive_tree
from wardian.model.errors import Invalid, LimitExceeded, NotFound
from wardian.snapshots.store import disk_error

UPLOAD_BYTES_MAX = 2 << 30
"""Of one archive, as it is sent."""

TEMPLATE_BYTES_MAX = 16 << 30
"""Of all the archives of one template; the ones that were used longest ago go first."""

IN_USE_S = 3600.0
"""An archive used within this time is not removed to make room: a build may be reading it."""

TICKET_S = 3600.0
TICKETS_MAX = 4096
EXTENSION_BYTES_MAX = 1 << 20
"""Of a header that goes on before its file (a long name, say): the reader holds it in memory."""

_BLOCK = 512
_EXTENSIONS = (b"x", b"g", b"L", b"K")
_CHUNK = 1 << 20


class TooLarge(Invalid):
    code = "request_too_large"


@dataclass(frozen=True, slots=True)
class Ticket:
    """Permission to upload one archive, once, until ``until`` of the clock."""

    template_id: str
    name: str
    until: float


class Uploads:
    """The archives in one directory. ``clock`` counts seconds."""

    def __init__(self, directory: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._directory = directory
        self._clock = clock
        self._tickets: dict[str, Ticket] = {}

    # ── tickets

    def ticket(self, template_id: str, name: str) -> str:
        """A secret that lets whoever has it upload this archive, once."""
        now = self._clock()
        if len(self._tickets) >= TICKETS_MAX:
            self._tickets = {key: each for key, each in self._tickets.items() if each.until > now}
            if len(self._tickets) >= TICKETS_MAX:
                raise LimitExceeded("too many uploads have been asked for and not made")
        secret = secrets.token_urlsafe(32)
        self._tickets[secret] = Ticket(template_id, name, now + TICKET_S)
        return secret

    def take(self, secret: str) -> Ticket:
        """Use a ticket up. Raises NotFound for one that is unknown, used or too old."""
        ticket = self._tickets.pop(secret, None)
        if ticket is None or ticket.until <= self._clock():
            raise NotFound("this upload address is not valid, or no longer", code="upload_not_found")
        return ticket

    # ── archives

    def find(self, template_id: str, name: str) -> tuple[str, Path] | None:
        """The digest and the file of an archive that was uploaded; marked as used now."""
        newest = max(
            self._place(template_id).glob(f"{name}-*.tar"),
            key=lambda path: path.stat().st_mtime,
            default=None,
        )
        if newest is None:
            return None
        os.utime(newest)
        return newest.stem.rpartition("-")[2], newest

    async def receive(self, ticket: Ticket, body: AsyncIterator[bytes]) -> str:
        """Keep an archive as it comes. Returns the digest of its files.

        Raises :class:`TooLarge` or :class:`BadArchive`; then nothing is kept.
        """
        place = self._place(ticket.template_id)
        try:
            await asyncio.to_thread(place.mkdir, parents=True, exist_ok=True, mode=0o700)
            with tempfile.TemporaryDirectory(prefix=".upload-", dir=place) as scratch:
                sent, plain = Path(scratch) / "sent", Path(scratch) / "plain.tar"
                await _save(body, sent)
                digest = await asyncio.to_thread(_unpack, sent, plain, ticket.name)
                await asyncio.to_thread(_publish, plain, place / f"{ticket.name}-{digest}.tar")
        except OSError as error:
            raise disk_error(error) from error
        await asyncio.to_thread(self._prune, place)
        return digest

    def _prune(self, place: Path) -> None:
        """Keep a template's archives within their bound."""
        now, total = time.time(), 0
        found = sorted(
            ((path.stat(), path) for path in place.glob("*.tar")), key=lambda each: -each[0].st_mtime
        )
        for stat, path in found:
            total += stat.st_size
            if total > TEMPLATE_BYTES_MAX and now - stat.st_mtime > IN_USE_S:
                path.unlink(missing_ok=True)

    def remove(self, template_id: str) -> None:
        """Forget every archive of a template."""
        shutil.rmtree(self._place(template_id), ignore_errors=True)

    def collect(self, known: frozenset[str]) -> None:
        """Remove the archives of templates that are not ``known``, and what killed uploads left."""
        for place in self._directory.glob("*"):
            if place.name not in known:
                shutil.rmtree(place, ignore_errors=True)
            for left in place.glob(".upload-*"):
                shutil.rmtree(left, ignore_errors=True)

    def _place(self, template_id: str) -> Path:
        return self._directory / template_id


async def _save(body: AsyncIterator[bytes], path: Path) -> None:
    size = 0
    with path.open("wb") as file:
        async for chunk in body:
            size += len(chunk)
            if size > UPLOAD_BYTES_MAX:
                raise TooLarge(
                    f"the files are larger than {UPLOAD_BYTES_MAX >> 20} MiB",
                    hint="leave out what is not needed, with .dockerignore",
                )
            await asyncio.to_thread(file.write, chunk)


def _unpack(sent: Path, plain: Path, name: str) -> str:
    """Write the tar in ``sent`` (plain, or gzip) to ``plain``; return the digest of its files."""
    whole = sha256()
    with sent.open("rb") as source, plain.open("wb") as sink:
        pieces = (
            _inflated(source) if source.peek(2)[:2] == b"\x1f\x8b" else iter(lambda: source.read(_CHUNK), b"")
        )
        size = 0
        for piece in pieces:
            size += len(piece)
            if size > BYTES_MAX:
                raise TooLarge(f"the files are larger than {BYTES_MAX >> 20} MiB unpacked")
            sink.write(piece)
            whole.update(piece)
    with plain.open("rb") as file:
        _check_extensions(file)
    digest = _files_digest(plain)
    return name if name == whole.hexdigest() else digest


def _inflated(source: IO[bytes]) -> Iterator[bytes]:
    """A gzip file's content, in pieces of bounded size."""
    inflater = zlib.decompressobj(31)
    while chunk := source.read(_CHUNK):
        while chunk:
            try:
                piece = inflater.decompress(chunk, _CHUNK)
            except zlib.error as error:
                raise BadArchive(f"the uploaded files are not a readable archive: {error}") from None
            if piece:
                yield piece
            chunk = inflater.unconsumed_tail or inflater.unused_data
            if inflater.eof and chunk:  # gzip allows several members, one after the other
                inflater = zlib.decompressobj(31)
    if not inflater.eof:
        raise BadArchive("the uploaded archive ends too early")


def _check_extensions(file: IO[bytes]) -> None:
    """Refuse what would make a reader of tars hold too much in memory, or go where nothing is."""
    end = os.fstat(file.fileno()).st_size
    while len(header := file.read(_BLOCK)) == _BLOCK and header.strip(b"\0"):
        size = _size_of(header)
        if header[156:157] in _EXTENSIONS and size > EXTENSION_BYTES_MAX:
            raise BadArchive("a name or an attribute in the uploaded archive is too long")
        if size > end - file.tell():
            raise BadArchive("the uploaded archive ends too early")
        file.seek((size + _BLOCK - 1) // _BLOCK * _BLOCK, os.SEEK_CUR)


def _size_of(header: bytes) -> int:
    field = header[124:136]
    if field[0] & 0x80:  # a binary number, for what is larger than 8 GiB
        return int.from_bytes(field[1:], "big")
    digits = field.strip(b" \0")
    try:
        return int(digits or b"0", 8)
    except ValueError:
        raise BadArchive("the uploaded files are not a readable tar: a size is no number") from None


def _files_digest(path: Path) -> str:
    """A digest of the files in a tar: their paths, kinds, modes and contents, and nothing else."""
    whole = sha256()
    with archive_tree(path, bytes_max=BYTES_MAX) as tree:
        for name, item in tree.items.items():
            whole.update(
                repr((name, item.kind, item.mode, item.size, item.target)).encode("utf-8", "surrogateescape")
            )
            if item.kind == "file":
                with tree.open(name) as content:
                    digest = sha256()
                    while chunk := content.read(_CHUNK):
                        digest.update(chunk)
                whole.update(digest.digest())
    return whole.hexdigest()


def _publish(draft: Path, place: Path) -> None:
    with draft.open("rb") as file:
        os.fsync(file.fileno())
    draft.rename(place)
