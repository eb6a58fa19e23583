"""Files of the guest: entries, and the streams that read, write and list."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from types import MappingProxyType

from wardian.guest.errors import Refuse, answer, at_path
from wardian.guest.frames import OP_LIST, OP_READ, OP_WRITE, FieldReader, Fields, Violation, field, number
from wardian.guest.link import Link
from wardian.guest.streams import Answered, Inflow, Outflow, begin, parsed
from wardian.guest.values import Entry
from wardian.model.errors import Conflict, Invalid, LimitExceeded, WardianError

ENTRY_TAG = 30
ENTRY_MAX = 64 * 1024
ENTRIES_MAX = 200_000
LISTING_MAX = 64 * 1024 * 1024
METADATA_PREFIX = "user.e2b."
METADATA_MAX = 64
_NAME_MAX = 4096
_SIZE_MAX = (1 << 63) - 1
_TYPES = {1: "file", 2: "directory", 3: "other"}
_NO_METADATA: Mapping[str, str] = MappingProxyType({})


def text(value: str, what: str) -> bytes:
    """A string for the guest. Invalid when the guest could not be given it."""
    try:
        encoded = value.encode()
    except UnicodeEncodeError:
        raise Invalid(f"{what} is not valid Unicode", code="invalid_text") from None
    if b"\0" in encoded:
        raise Invalid(f"{what} contains a NUL byte", code="invalid_text")
    return encoded


def place(path: str, user: str | None) -> bytes:
    """The fields that say where, and as whom."""
    if not path:
        raise Invalid("the path is empty", code="invalid_path")
    where = field(2, text(path, "the path"))
    return where if user is None else field(1, text(user, "the user")) + where


def parse_entry(payload: bytes) -> Entry:
    """One entry, as the guest claims it. Text is for people: what is not UTF-8 is replaced."""
    fields = Fields(payload)
    kind, size = _TYPES.get(fields.integer(2, 1)), fields.integer(4, 8)
    if kind is None or size > _SIZE_MAX:
        raise Violation("an entry of no known type or an impossible size")
    target = fields.optional(9)
    if target is not None and len(target) > _NAME_MAX:
        raise Violation("a symlink target that is too long")
    return Entry(
        name=fields.text(1, limit=_NAME_MAX),
        type=kind,
        path=fields.text(3, limit=_NAME_MAX),
        size=size,
        mode=fields.integer(5, 4) & 0o7777,
        owner=fields.text(6, limit=256),
        group=fields.text(7, limit=256),
        mtime_ns=fields.integer(8, 8, signed=True),
        symlink_target=None if target is None else target.decode("utf-8", "replace"),
        metadata=_metadata(fields.many(10)),
    )


def _metadata(attributes: list[bytes]) -> Mapping[str, str]:
    if not attributes:
        return _NO_METADATA
    metadata = {}
    for attribute in attributes:
        name, nul, value = attribute.partition(b"\0")
        key = name.decode("utf-8", "replace")
        if not nul or not key.startswith(METADATA_PREFIX):
            raise Violation("an attribute that is no metadata")
        metadata[key.removeprefix(METADATA_PREFIX)] = value.decode("utf-8", "replace")
    return metadata


def entry_of(fields: Fields) -> Entry:
    return parse_entry(fields.raw(ENTRY_TAG))


def _entry_answer(payload: bytes) -> Entry:
    return entry_of(Fields(payload))


class _FileStream(Answered):
    """READ, LIST and WRITE: a REPLY, data one way, an END."""

    __slots__ = ("_done", "_refuse_later", "inflow", "outflow")

    def __init__(self, link: Link, refuse: Refuse, *, writing: bool) -> None:
        super().__init__(link, refuse, unary=False)
        self._refuse_later = refuse
        self.inflow = Inflow(self) if not writing else None
        self.outflow = Outflow(self) if writing else None
        self._done: asyncio.Future[bytes] | None = None

    def on_data(self, channel: int, payload: memoryview) -> None:
        if self.inflow is None or not self.reply.done():
            raise Violation("DATA out of place")
        self.inflow.received(channel, payload)

    def on_eof(self, channel: int) -> None:
        if self.inflow is None:
            raise Violation("EOF out of place")
        self.inflow.ended(channel)

    def on_grant(self, size: int) -> None:
        if self.outflow is None:
            raise Violation("a WINDOW out of place")
        self.outflow.granted(size)

    def on_end(self, payload: bytes) -> None:
        errno, message = answer(payload)
        if not self.reply.done():
            raise Violation("an END before the REPLY")
        if not errno and self.outflow is not None and not self.outflow.finished:
            raise Violation("a WRITE that ended before its data did")
        self.link.forget(self)
        error = self._refuse_later(errno, message) if errno else None
        if self.inflow is not None:
            self.inflow.end(error)
        if self.outflow is not None:
            self.outflow.stop(error or Conflict("the write is over", code="closed"))
            self._finish(payload[4:], error)

    def fail(self, error: WardianError) -> None:
        super().fail(error)
        if self.inflow is not None:
            self.inflow.fail(error)
        if self.outflow is not None:
            self.outflow.stop(error)
            self._finish(b"", error)

    def _finish(self, fields: bytes, error: WardianError | None) -> None:
        done = self.done
        if done.done():
            return
        if error is None:
            done.set_result(fields)
        else:
            done.set_exception(error)
            done.exception()  # it may be that the writer has noticed by other means

    @property
    def done(self) -> asyncio.Future[bytes]:
        """The END of a WRITE: its fields."""
        if self._done is None:
            self._done = asyncio.get_running_loop().create_future()
        return self._done


class FileReader(AsyncIterator[bytes]):
    """The contents of a file, in pieces of at most 64 KiB. Dropping it, or ``aclose``, ends the transfer."""

    def __init__(self, stream: _FileStream, inflow: Inflow, length: int | None) -> None:
        self._stream, self._inflow, self._left = stream, inflow, length

    async def __anext__(self) -> bytes:
        data = await self._inflow.read()
        if not data:
            raise StopAsyncIteration
        if self._left is not None:
            self._left -= len(data)
            if self._left < 0:
                self._stream.link.fault("the guest broke the protocol: more DATA than was asked for")
                raise self._stream.link.failure()
        return data

    async def aclose(self) -> None:
        self._stream.link.abandon(self._stream)
        self._inflow.end(None)

    def __del__(self) -> None:
        self._stream.link.abandon(self._stream)


async def read(
    link: Link, path: str, user: str | None, offset: int, length: int | None
) -> tuple[Entry, AsyncIterator[bytes]]:
    """Open a file for reading; what is listed first is what it was when it was opened."""
    if not 0 <= offset <= _SIZE_MAX or (length is not None and not 0 <= length <= _SIZE_MAX):
        raise Invalid("a range outside of any file", code="invalid_range")
    body = place(path, user)
    if offset:
        body += number(6, offset, 8)
    if length is not None:
        body += number(7, length, 8)
    stream = _FileStream(link, at_path(path), writing=False)
    assert stream.inflow is not None
    fields = await begin(stream, OP_READ, body)
    reader = FileReader(stream, stream.inflow, length)
    return parsed(link, _entry_answer, fields), reader


async def write(
    link: Link,
    path: str,
    chunks: AsyncIterator[bytes],
    *,
    user: str | None,
    mode: int,
    metadata: Mapping[str, str],
    append: bool,
) -> Entry:
    """Write a file from ``chunks``. If they fail, or the caller gives up, what was written stays."""
    body = place(path, user) + number(6, mode & 0o7777, 4) + number(7, int(append), 1) + _attributes(metadata)
    stream = _FileStream(link, at_path(path), writing=True)
    assert stream.outflow is not None
    await begin(stream, OP_WRITE, body)
    try:
        async for chunk in chunks:
            await stream.outflow.send(chunk)
        done = stream.done
        await stream.outflow.finish()
        fields = await done
    except BaseException:
        link.abandon(stream)
        raise
    return parsed(link, _entry_answer, fields)


def _attributes(metadata: Mapping[str, str]) -> bytes:
    if len(metadata) > METADATA_MAX:
        raise Invalid(f"more than {METADATA_MAX} metadata entries", code="invalid_metadata")
    return b"".join(
        field(8, text(METADATA_PREFIX + key, "a metadata key") + b"\0" + text(value, "a metadata value"))
        for key, value in metadata.items()
    )


async def listing(link: Link, path: str, user: str | None, depth: int) -> list[Entry]:
    """Everything below a directory, in the guest's order. LimitExceeded for more than we want to hold."""
    if not 0 <= depth <= 0xFFFFFFFF:
        raise Invalid(f"depth {depth}", code="invalid_depth")
    stream = _FileStream(link, at_path(path), writing=False)
    assert stream.inflow is not None
    await begin(stream, OP_LIST, place(path, user) + number(6, depth, 4))
    try:
        return await _collect(stream.inflow)
    except Violation as violation:
        link.fault(f"the guest broke the protocol: {violation}")
        raise link.failure() from None
    finally:
        link.abandon(stream)


async def _collect(inflow: Inflow) -> list[Entry]:
    entries: list[Entry] = []
    reader, size = FieldReader(ENTRY_MAX), 0
    while data := await inflow.read():
        size += len(data)
        for tag, value in reader.feed(data):
            if tag == ENTRY_TAG:
                entries.append(parse_entry(value))
        if size > LISTING_MAX or len(entries) > ENTRIES_MAX:
            raise LimitExceeded(
                f"more than {ENTRIES_MAX} entries", code="listing_too_large", hint="list with a smaller depth"
            )
        await asyncio.sleep(0)  # parsing is the slow part: let others have their turn
    reader.finish()
    return entries
