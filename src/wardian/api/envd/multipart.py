"""``multipart/form-data``, part by part, without keeping more of it than one chunk of the request."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header

_PART_HEADERS_MAX = 16 * 1024
_PARTS_MAX = 10_000


class BadForm(Exception):
    """A body that is not the form it says it is; answered 400."""


@dataclass(slots=True)
class Part:
    """One field of the form: its name, its file name (None without), and its content, to be read once."""

    name: str
    filename: str | None
    chunks: AsyncIterator[bytes]


@dataclass(slots=True)
class _Headers:
    """The headers of one part while they are being read."""

    name: bytearray = field(default_factory=bytearray)
    value: bytearray = field(default_factory=bytearray)
    size: int = 0
    disposition: bytes = b""

    def grow(self, target: bytearray, piece: bytes) -> None:
        self.size += len(piece)
        if self.size > _PART_HEADERS_MAX:
            raise BadForm("the headers of a part are too long")
        target += piece

    def finish_one(self) -> None:
        if bytes(self.name).strip().lower() == b"content-disposition":
            self.disposition = bytes(self.value)
        self.name.clear()
        self.value.clear()


_END = object()


class FormReader:
    """Reads a form as its body arrives. Take the parts in turn; a part's chunks end with it."""

    def __init__(self, content_type: str, body: AsyncIterator[bytes]) -> None:
        kind, options = parse_options_header(content_type)
        boundary = options.get(b"boundary")
        if kind != b"multipart/form-data" or not boundary:
            raise BadForm("multipart/form-data without a boundary")
        self._body = body
        self._events: deque[Part | bytes | object] = deque()
        self._headers = _Headers()
        self._parts = 0
        self._complete = False
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin,
                "on_header_field": self._header_name,
                "on_header_value": self._header_value,
                "on_header_end": self._header_end,
                "on_headers_finished": self._headers_finished,
                "on_part_data": self._data,
                "on_part_end": self._end,
                "on_end": self._end_of_form,
            },
        )

    async def parts(self) -> AsyncIterator[Part]:
        """Every part of the form. Raises :class:`BadForm`. What is not read of a part is skipped."""
        while (event := await self._next()) is not None:
            if isinstance(event, Part):
                yield event

    async def _content(self) -> AsyncIterator[bytes]:
        while (event := await self._next()) is not _END:
            if event is None:
                raise BadForm("the form ends in the middle of a part")
            assert isinstance(event, bytes)
            yield event

    async def _next(self) -> Part | bytes | object | None:
        """The next thing the parser found; None at the end of the body."""
        while not self._events:
            chunk = await anext(self._body, None)
            if chunk is None:
                if not self._complete:
                    raise BadForm("the form ends too early")
                return None
            try:
                self._parser.write(chunk)
            except MultipartParseError as error:
                raise BadForm(f"malformed form: {error}") from None
        return self._events.popleft()

    # -- the parser's callbacks

    def _begin(self) -> None:
        self._headers = _Headers()
        self._parts += 1
        if self._parts > _PARTS_MAX:
            raise BadForm(f"a form has at most {_PARTS_MAX} parts")

    def _header_name(self, data: bytes, start: int, end: int) -> None:
        self._headers.grow(self._headers.name, data[start:end])

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._headers.grow(self._headers.value, data[start:end])

    def _header_end(self) -> None:
        self._headers.finish_one()

    def _headers_finished(self) -> None:
        _, options = parse_options_header(self._headers.disposition)
        filename = options.get(b"filename")
        self._events.append(
            Part(
                name=_decoded(options.get(b"name", b"")),
                filename=None if filename is None else _decoded(filename),
                chunks=self._content(),
            )
        )

    def _data(self, data: bytes, start: int, end: int) -> None:
        self._events.append(data[start:end])

    def _end(self) -> None:
        self._events.append(_END)

    def _end_of_form(self) -> None:
        self._complete = True


def _decoded(value: bytes) -> str:
    return value.decode("utf-8", "replace")
