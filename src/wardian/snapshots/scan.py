"""Looks for values in files at the speed of memory: whole, encoded, across borders, in compressed streams.

Every form of a value is looked for by two short pieces from its middle, all at once (Vectorscan); where one
of them is found, the bytes around it decide. So a form is found

* whole, with line ends in it where it is base64;
* **torn**: at the border of a page of a memory image (neighbours in memory need not be neighbours there),
  when at least half of it is on one side.

Compressed streams (gzip, zlib, and the members of zip files) are inflated and searched as well, and what is
in them once more, as far as :class:`Limits` allow; what they did not allow is told.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol

import hyperscan

from wardian.snapshots.needles import VALUE_MIN, Form, Needle, forms_of

VERSION = "1"
WINDOW = 1 << 20
PAGE = 4096
_ANCHOR = 12
_STREAM_HEADS = (
    rb"\x1f\x8b\x08[\x00-\x1f]",
    rb"x[\x01\x5e\x9c\xda][^\x06\x07\x0e\x0f\x16\x17\x1e\x1f]",  # a third of what cannot go on so
    rb"PK\x03\x04[\x0a-\x3f]\x00..\x08\x00",
)
_GZIP, _ZLIB, _ZIP = range(3)
_NAMES = ("gzip", "zlib", "zip")
_PROBE = 512
_PIECE = 256 * 1024


class Source(Protocol):
    """Bytes to search."""

    @property
    def name(self) -> str: ...

    @property
    def size(self) -> int: ...

    @property
    def paged(self) -> bool:
        """Whether it is memory, whose pages lie in any order."""

    def read_into(self, buffer: memoryview, offset: int) -> int:
        """Fill ``buffer`` from ``offset`` on; less only at the end. Called from several threads."""

    def place(self, offset: int) -> str:
        """What people call a place: a file's path, or ""."""


class FileSource:
    """A file on the host, by its path or an open descriptor, which stays the caller's. ``locate`` says what
    lies at an offset, where anybody knows."""

    def __init__(
        self,
        file: Path | int,
        *,
        name: str = "",
        paged: bool = False,
        locate: Callable[[int], str] | None = None,
    ) -> None:
        self.name, self.paged = name or (file.name if isinstance(file, Path) else ""), paged
        self._locate = locate
        self._fd = os.dup(file) if isinstance(file, int) else os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        self.size = os.fstat(self._fd).st_size

    def close(self) -> None:
        os.close(self._fd)

    def __enter__(self) -> FileSource:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def read_into(self, buffer: memoryview, offset: int) -> int:
        done = 0
        while done < len(buffer) and (got := os.preadv(self._fd, [buffer[done:]], offset + done)):
            done += got
        return done

    def place(self, offset: int) -> str:
        return self._locate(offset) if self._locate else ""


@dataclass(frozen=True, slots=True)
class BytesSource:
    """What came out of a stream."""

    name: str
    data: bytes = field(repr=False)
    paged: bool = False

    @property
    def size(self) -> int:
        return len(self.data)

    def read_into(self, buffer: memoryview, offset: int) -> int:
        piece = self.data[offset : offset + len(buffer)]
        buffer[: len(piece)] = piece
        return len(piece)

    def place(self, _offset: int) -> str:
        return ""


@dataclass(frozen=True, slots=True)
class Limits:
    """How much work compressed streams are worth, in bytes that come out of them."""

    stream_bytes: int = 64 << 20  # of one
    total_bytes: int = 2 << 30
    depth: int = 3  # a stream in a stream in a stream
    hits: int = 64  # more tell nothing new
    threads: int = field(default_factory=lambda: min(4, os.cpu_count() or 1))


@dataclass(frozen=True, slots=True)
class Hit:
    """Where a needle was found. ``inside`` are the streams around it, outermost first, each with the offset
    it begins at; ``offset`` counts in the innermost."""

    needle: str
    form: str
    source: str
    offset: int
    torn: bool = False
    place: str = ""
    inside: tuple[str, ...] = ()

    def __str__(self) -> str:
        where = self.place or f"{self.source} at {self.offset:#x}"
        inside = "".join(f" in {each}" for each in reversed(self.inside))
        return f"{self.needle} ({self.form}{', torn' if self.torn else ''}) in {where}{inside}"


@dataclass(slots=True)
class Report:
    """What was searched, for what, and what was found."""

    searched: dict[str, str] = field(default_factory=dict)  # ids, and fingerprints of the values
    unsearchable: list[str] = field(default_factory=list)  # too short
    sources: dict[str, int] = field(default_factory=dict)  # bytes
    streams: int = 0
    stream_bytes: int = 0
    streams_cut: int = 0  # not, or not wholly, looked into: over the limits
    hits: list[Hit] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        return not self.hits


def scan(
    sources: Sequence[Source],
    needles: Sequence[Needle],
    limits: Limits | None = None,
    *,
    fingerprints: bytes = b"",
) -> Report:
    """Look for every needle in every source. Blocks; uses ``limits.threads`` threads.

    ``fingerprints`` is the key by which the report names values.
    """
    limits = limits or Limits()
    report = Report(
        searched={needle.id: needle.fingerprint(fingerprints) for needle in needles if needle.searchable},
        unsearchable=[needle.id for needle in needles if not needle.searchable],
        sources={source.name: source.size for source in sources},
    )
    forms = forms_of(needles)
    if forms:
        search = _Search(needles, forms, limits, report)
        for source in sources:
            search.through(source, ())
    report.hits.sort(key=lambda hit: (hit.source, hit.inside, hit.offset))
    return report


@dataclass(frozen=True, slots=True)
class _Anchor:
    form: Form
    at: int  # where in the form's data the piece begins
    size: int


class _Search:
    """One scan: the compiled pieces, and what was found so far."""

    def __init__(
        self, needles: Sequence[Needle], forms: Sequence[Form], limits: Limits, report: Report
    ) -> None:
        self._needles, self._limits, self._report = needles, limits, report
        self._anchors = [anchor for form in forms for anchor in _anchors(form)]
        self._margin = 2 * max(len(form.data) for form in forms) + 64
        self._found: set[tuple[int, str, str, tuple[str, ...], int]] = set()
        expressions = list(_STREAM_HEADS)
        expressions += [
            _escaped(anchor.form.data[anchor.at : anchor.at + anchor.size]) for anchor in self._anchors
        ]
        self._database = hyperscan.Database(mode=hyperscan.HS_MODE_BLOCK)
        self._database.compile(
            expressions=expressions,
            ids=list(range(len(expressions))),
            elements=len(expressions),
            flags=hyperscan.HS_FLAG_DOTALL,
        )

    def through(self, source: Source, inside: tuple[str, ...]) -> None:
        """A source, and then the streams in it."""
        begins = list(range(0, source.size, WINDOW))
        streams: list[tuple[int, int]] = []
        threads = min(self._limits.threads, len(begins)) if not inside else 1
        if threads > 1:
            with ThreadPoolExecutor(threads, thread_name_prefix="scan") as pool:
                lanes = [
                    pool.submit(self._lane, source, begins[one::threads], inside) for one in range(threads)
                ]
                for lane in lanes:
                    streams += lane.result()
        else:
            streams = self._lane(source, begins, inside)
        self._streams(source, sorted(streams), inside)

    def _lane(self, source: Source, begins: Sequence[int], inside: tuple[str, ...]) -> list[tuple[int, int]]:
        """Search windows one after another; where streams may begin, and of which kind."""
        scratch = hyperscan.Scratch(self._database)
        buffer = bytearray(min(WINDOW + 2 * self._margin, source.size))
        view, streams = memoryview(buffer), list[tuple[int, int]]()
        for begin in begins:
            base = max(0, begin - self._margin)
            size = source.read_into(view[: begin - base + WINDOW + self._margin], base)
            window = _Window(source, view[:size], base, begin, min(begin + WINDOW, source.size), inside)
            self._database.scan(window.data, partial(self._matched, window, streams), scratch=scratch)  # type: ignore[type-var]
        return streams

    def _matched(
        self, window: _Window, streams: list[tuple[int, int]], number: int, _: int, end: int, *__: object
    ) -> None:
        if number < len(_STREAM_HEADS):
            start = end - (4, 3, 10)[number]
            if window.owns(start):
                streams.append((window.base + start, number))
            return
        anchor = self._anchors[number - len(_STREAM_HEADS)]
        if window.owns(end - anchor.size) and len(self._report.hits) < self._limits.hits:
            self._judge(window, anchor, end - anchor.size)

    def _judge(self, window: _Window, anchor: _Anchor, at: int) -> None:
        """A piece was found; ``at`` is where in the window."""
        form, start = anchor.form, at - anchor.at
        whole = start >= 0 and window.data[start : start + len(form.data)] == form.data
        torn = False
        if not whole and form.wrapped:
            whole = _wrapped(
                bytes(window.data[max(0, at - 2 * len(form.data)) : at]), form.data[: anchor.at], -1
            )
            whole = whole and _wrapped(
                bytes(window.data[at : at + 2 * len(form.data)]), form.data[anchor.at :], 1
            )
        if not whole and window.source.paged:
            torn = _torn(window, form.data, start)
        if not whole and not torn:
            return
        offset = window.base + max(start, 0)
        known = (form.needle, form.name, window.source.name, window.inside, offset)
        if known in self._found:
            return
        self._found.add(known)
        hit = Hit(
            self._needles[form.needle].id,
            form.name,
            window.source.name,
            offset,
            torn,
            window.source.place(offset),
            window.inside,
        )
        self._report.hits.append(hit)

    # ── compressed

    def _streams(self, source: Source, begins: Sequence[tuple[int, int]], inside: tuple[str, ...]) -> None:
        """Inflate what begins at these offsets, if it is a stream, and search what comes out."""
        over = 0
        for begin, kind in begins:
            if begin < over:
                continue
            if len(inside) >= self._limits.depth or self._report.stream_bytes >= self._limits.total_bytes:
                self._report.streams_cut += len(inside) < self._limits.depth or _is_stream(
                    source, begin, kind
                )
                continue
            room = min(self._limits.stream_bytes, self._limits.total_bytes - self._report.stream_bytes)
            out, over_at, cut = _inflate(source, begin, kind, room)
            self._report.streams_cut += cut
            if len(out) < VALUE_MIN:
                continue
            over = over_at or begin
            self._report.streams += len(out) >= _PROBE or bool(over_at)  # the rest only looks like one
            self._report.stream_bytes += len(out)
            around = source.place(begin)
            where = f"{_NAMES[kind]} at {begin:#x}" + (f" ({around})" if around else "")
            self.through(BytesSource(source.name, out), (*inside, where))


@dataclass(frozen=True, slots=True)
class _Window:
    """A piece of a source with margins; only what begins between ``begin`` and ``end`` is its own."""

    source: Source
    data: memoryview
    base: int  # the offset of its first byte
    begin: int
    end: int
    inside: tuple[str, ...]

    def owns(self, at: int) -> bool:
        return self.begin <= self.base + at < self.end


def _anchors(form: Form) -> Iterator[_Anchor]:
    """The two pieces that meet in the middle of a form."""
    middle = len(form.data) // 2
    size = min(_ANCHOR, middle)
    yield _Anchor(form, middle - size, size)
    yield _Anchor(form, middle, min(size, len(form.data) - middle))


def _escaped(piece: bytes) -> bytes:
    return b"".join(b"\\x%02x" % byte for byte in piece)


def _torn(window: _Window, data: bytes, start: int) -> bool:
    """Whether at least half of ``data``, which would begin at ``start``, ends or begins with its page."""
    for border in range(-(-(window.base + start + 1) // PAGE) * PAGE, window.base + start + len(data), PAGE):
        cut = border - (window.base + start)
        here = border - window.base
        if 2 * cut >= len(data) and start >= 0 and window.data[start:here] == data[:cut]:
            return True
        if 2 * cut <= len(data) and window.data[here : here + len(data) - cut] == data[cut:]:
            return True
    return False


def _wrapped(around: bytes, wanted: bytes, direction: int) -> bool:
    """Whether ``wanted`` stands at the beginning (1) or end (-1) of ``around``, line ends left out."""
    plain = around.replace(b"\\r", b"").replace(b"\\n", b"").translate(None, b"\r\n \t")
    return plain.startswith(wanted) if direction > 0 else plain.endswith(wanted)


def _is_stream(source: Source, begin: int, kind: int) -> bool:
    out, over, _ = _inflate(source, begin, kind, _PROBE)
    return len(out) >= _PROBE or bool(over)


def _inflate(source: Source, begin: int, kind: int, room: int) -> tuple[bytes, int, bool]:
    """What comes out of a stream, up to ``room`` bytes; where it is over (0: broken off); whether it was cut.

    What came out before a stream breaks counts: half of one is as telling.
    """
    at, bits = begin, zlib.MAX_WBITS | 16 if kind == _GZIP else zlib.MAX_WBITS
    if kind == _ZIP:
        head = memoryview(bytearray(30))
        if source.read_into(head, begin) < 30:
            return b"", 0, False
        at += 30 + int.from_bytes(head[26:28], "little") + int.from_bytes(head[28:30], "little")
        bits = -zlib.MAX_WBITS
    engine, out, size = zlib.decompressobj(bits), bytearray(), _PROBE
    buffer = memoryview(bytearray(_PIECE))
    with suppress(zlib.error):
        while not engine.eof:
            got = source.read_into(buffer[:size], at)
            if not got:
                break
            out += engine.decompress(buffer[:got], room - len(out) + 1)
            at, size = at + got, _PIECE
            if len(out) > room:
                return bytes(out[:room]), 0, True
    return bytes(out), at - len(engine.unused_data) if engine.eof else 0, False
