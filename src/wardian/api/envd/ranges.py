"""Ranges, validators and content codings of a file's answer. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import formatdate, parsedate_to_datetime
from mimetypes import guess_type
from urllib.parse import quote

from wardian.api.envd.routing import header
from wardian.guest.guest import Entry

_RANGE = re.compile(r"bytes=([0-9]{0,19})-([0-9]{0,19})")
_NS = 1_000_000_000
_YEAR_9999_S = 253_402_300_799


@dataclass(frozen=True, slots=True)
class Span:
    """A piece of a file: ``length`` bytes from ``offset``."""

    offset: int
    length: int


class Unsatisfiable(Exception):
    """A range that lies outside the file; answered 416."""


def parse_range(text: str | None, size: int) -> Span | None:
    """The piece a Range header asks for; None for the whole. Several pieces at once count as the whole."""
    match = _RANGE.fullmatch(text.replace(" ", "")) if text else None
    if match is None or not (match[1] or match[2]):
        return None
    if not match[1]:  # the last so many bytes
        length = min(int(match[2]), size)
        if length == 0:
            raise Unsatisfiable
        return Span(size - length, length)
    first = int(match[1])
    last = min(int(match[2]), size - 1) if match[2] else size - 1
    if match[2] and int(match[2]) < first:
        return None  # not a range at all, says RFC 9110
    if first >= size:
        raise Unsatisfiable
    return Span(first, last - first + 1)


def etag(entry: Entry) -> str:
    """Changes whenever the file's size or time of change does."""
    return f'"{entry.mtime_ns & (2**64 - 1):x}-{entry.size:x}"'


def last_modified(entry: Entry) -> str:
    return formatdate(min(max(entry.mtime_ns // _NS, 0), _YEAR_9999_S), usegmt=True)


def is_unchanged(headers: Mapping[bytes, bytes], entry: Entry) -> bool:
    """Whether the client's copy is still good (304)."""
    if (tags := header(headers, b"if-none-match")) is not None:
        return tags.strip() == "*" or etag(entry) in [_weak(tag) for tag in tags.split(",")]
    since = _moment(header(headers, b"if-modified-since"))
    return since is not None and entry.mtime_ns // _NS <= since


def range_still_holds(headers: Mapping[bytes, bytes], entry: Entry) -> bool:
    """Whether a range may be answered: with If-Range, only when the file is the one the client knows."""
    condition = header(headers, b"if-range")
    if condition is None:
        return True
    if condition.startswith(('"', "W/")):
        return condition == etag(entry)
    return _moment(condition) == max(entry.mtime_ns // _NS, 0)


def _weak(tag: str) -> str:
    return tag.strip().removeprefix("W/")


def _moment(text: str | None) -> int | None:
    if text is None:
        return None
    try:
        return int(parsedate_to_datetime(text).timestamp())
    except (ValueError, OverflowError):
        return None


def wants_gzip(accept_encoding: str | None) -> bool:
    """Whether gzip was asked for and nothing else: a client that merely lists it is better served without."""
    wanted = []
    for item in (accept_encoding or "").lower().split(","):
        coding, _, quality = item.partition(";")
        if coding.strip() and not re.fullmatch(r"\s*q=0(\.0*)?\s*", quality):
            wanted.append(coding.strip())
    return wanted == ["gzip"]


def forbids_identity(accept_encoding: str | None) -> bool:
    """Whether neither identity nor gzip would do (406)."""
    refused: set[str] = set()
    offered: set[str] = set()
    for item in (accept_encoding or "").lower().split(","):
        coding, _, quality = item.partition(";")
        zero = re.fullmatch(r"\s*q=0(\.0*)?\s*", quality)
        (refused if zero else offered).add(coding.strip())
    if "identity" in offered or "gzip" in offered or "*" in offered:
        return False
    return "identity" in refused or "*" in refused


def content_type(name: str) -> str:
    """By the name's ending; text is taken to be UTF-8."""
    kind, coding = guess_type(name)
    if kind is None or coding is not None:
        return "application/octet-stream"
    return f"{kind}; charset=utf-8" if kind.startswith("text/") else kind


def disposition(name: str) -> str:
    """``Content-Disposition`` for a file name of any bytes."""
    plain = name.encode("ascii", "replace").decode()
    plain = re.sub(r'[\x00-\x1f\x7f"\\]', "_", plain)
    if plain == name:
        return f'inline; filename="{plain}"'
    return f"inline; filename=\"{plain}\"; filename*=UTF-8''{quote(name.encode('utf-8', 'replace'), safe='')}"
