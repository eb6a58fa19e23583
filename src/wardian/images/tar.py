"""Tar archives as layers need them: written in one canonical form, read strictly, contents left alone.

The reader understands what layers come in (ustar, pax, GNU long names and large numbers) and bounds all of it
before it is believed; it says where contents lie instead of reading them. Paths are bytes.
"""

from __future__ import annotations

import mmap
import stat
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from wardian.model.errors import Invalid

BLOCK = 512
END = bytes(2 * BLOCK)
MEMBERS_MAX = 2_000_000
EXTENDED_MAX = 1 << 20
_XATTR = b"SCHILY.xattr."
_HEADER = struct.Struct("100s8s8s8s12s12s8sc100s6s2s32s32s8s8s155s12x")
_OCTAL_UID_MAX, _OCTAL_SIZE_MAX = 0o7777777, 0o77777777777
_KINDS = {
    b"0": stat.S_IFREG,
    b"\0": stat.S_IFREG,
    b"7": stat.S_IFREG,
    b"2": stat.S_IFLNK,
    b"3": stat.S_IFCHR,
    b"4": stat.S_IFBLK,
    b"5": stat.S_IFDIR,
    b"6": stat.S_IFIFO,
}
_FLAGS = {kind: flag for flag, kind in _KINDS.items() if flag in b"0234567"[:6]}
_HARD_LINK = b"1"
_NO_XATTRS: Mapping[bytes, bytes] = MappingProxyType({})


class BadArchive(Invalid):
    """Not a tar archive, a damaged one, or one with something in it that no layer may have."""

    code = "bad_archive"


@dataclass(frozen=True, slots=True)
class Member:
    """One entry. ``mode`` has type bits (of a hard link: a file's); ``offset`` is where the content begins.

    ``link`` is the target of a symlink or, with ``hard``, the earlier name in the archive.
    """

    path: bytes
    mode: int
    uid: int = 0
    gid: int = 0
    mtime_ns: int = 0
    size: int = 0
    link: bytes = b""
    hard: bool = False
    device: tuple[int, int] = (0, 0)
    xattrs: Mapping[bytes, bytes] = field(default_factory=lambda: _NO_XATTRS)
    offset: int = 0


def padding(size: int) -> int:
    """Bytes that fill content of ``size`` up to a whole block."""
    return -size % BLOCK


def header(member: Member) -> bytes:
    """The blocks before a member's content; extended ones only where the plain form does not suffice."""
    extended: dict[bytes, bytes] = {}
    if len(member.path) > 100 or not member.path.isascii():
        extended[b"path"] = member.path
    if len(member.link) > 100 or not member.link.isascii():
        extended[b"linkpath"] = member.link
    seconds, nanoseconds = divmod(member.mtime_ns, 1_000_000_000)
    if nanoseconds or not 0 <= seconds <= _OCTAL_SIZE_MAX:
        extended[b"mtime"] = _decimal(member.mtime_ns)
        seconds = max(0, min(seconds, _OCTAL_SIZE_MAX))
    for name, value, limit in (
        (b"uid", member.uid, _OCTAL_UID_MAX),
        (b"gid", member.gid, _OCTAL_UID_MAX),
        (b"size", member.size, _OCTAL_SIZE_MAX),
    ):
        if value > limit:
            extended[name] = b"%d" % value
    for name, value_bytes in member.xattrs.items():
        extended[_XATTR + name] = value_bytes
    before = _extended(extended) if extended else b""
    flag = _HARD_LINK if member.hard else _FLAGS[stat.S_IFMT(member.mode)]
    return before + _block(member, flag, seconds)


def _extended(records: Mapping[bytes, bytes]) -> bytes:
    body = b"".join(_record(name, value) for name, value in sorted(records.items()))
    block = _block(Member(b"pax_header", stat.S_IFREG | 0o644, size=len(body)), b"x", 0)
    return block + body + bytes(padding(len(body)))


def _record(name: bytes, value: bytes) -> bytes:
    """ "<length> <name>=<value>\\n", where the length counts itself."""
    rest = len(name) + len(value) + 3
    length = rest + len(str(rest))
    length = rest + len(str(length))
    return b"%d %s=%s\n" % (length, name, value)


def _decimal(ns: int) -> bytes:
    sign, (seconds, nanoseconds) = ("-" if ns < 0 else ""), divmod(abs(ns), 1_000_000_000)
    return f"{sign}{seconds}.{nanoseconds:09}".rstrip("0").rstrip(".").encode()


def _block(member: Member, flag: bytes, seconds: int) -> bytes:
    device = member.device if flag in b"34" else (0, 0)
    fields = [
        member.path[:100],
        b"%07o\0" % (member.mode & 0o7777),
        b"%07o\0" % min(member.uid, _OCTAL_UID_MAX),
        b"%07o\0" % min(member.gid, _OCTAL_UID_MAX),
        b"%011o\0" % min(member.size, _OCTAL_SIZE_MAX),
        b"%011o\0" % seconds,
        b" " * 8,
        flag,
        member.link[:100],
        b"ustar\0",
        b"00",
        b"",
        b"",
        b"%07o\0" % device[0],
        b"%07o\0" % device[1],
        b"",
    ]
    fields[6] = b"%06o\0 " % sum(_HEADER.pack(*fields))
    return _HEADER.pack(*fields)


def members(archive: mmap.mmap | bytes) -> Iterator[Member]:
    """Every entry in the archive's order, paths as they stand there. Raises :class:`BadArchive`."""
    return _Reader(archive).members()


def members_in(path: Path) -> list[Member]:
    """Every entry of the archive in that file. Raises :class:`BadArchive`."""
    if not path.stat().st_size:
        raise BadArchive(f"{path.name} is empty")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as archive:
        return list(members(archive))


class _Reader:
    def __init__(self, archive: mmap.mmap | bytes) -> None:
        self._archive = archive
        self._end = len(archive)
        self._at = 0
        self._global: dict[bytes, bytes] = {}

    def members(self) -> Iterator[Member]:
        count = 0
        extended: dict[bytes, bytes] = {}
        while (block := self._next_block()) is not None:
            fields = _HEADER.unpack(block)
            flag, size = fields[7], _number(fields[4])
            if flag in b"xgLK":
                self._take_extended(flag, size, extended)
                continue
            count += 1
            if count > MEMBERS_MAX:
                raise BadArchive(f"more than {MEMBERS_MAX} entries in an archive")
            member = self._member(fields, {**self._global, **extended})
            self._skip(member.size)
            yield member
            extended = {}
        if extended:
            raise BadArchive("an archive ends within an entry")

    def _next_block(self) -> bytes | None:
        """The next header; None at the end, which two empty blocks or the file's end mark."""
        if self._at == self._end:
            return None
        block = self._archive[self._at : self._at + BLOCK]
        if len(block) < BLOCK:
            raise BadArchive("an archive is cut short")
        if block == bytes(BLOCK):
            return None
        said = _number(block[148:156])
        if said != sum(block) - sum(block[148:156]) + 8 * 32:
            raise BadArchive(f"not a tar header at byte {self._at}")
        self._at += BLOCK
        return block

    def _skip(self, size: int) -> None:
        if size > self._end - self._at:
            raise BadArchive("an archive is cut short")
        self._at = min(self._at + size + padding(size), self._end)

    def _take_extended(self, flag: bytes, size: int, extended: dict[bytes, bytes]) -> None:
        if size > EXTENDED_MAX:
            raise BadArchive(f"an extended header of {size} bytes")
        start = self._at
        self._skip(size)
        body = self._archive[start : start + size]
        if flag in b"LK":
            extended[b"path" if flag == b"L" else b"linkpath"] = body.split(b"\0", 1)[0]
        else:
            (self._global if flag == b"g" else extended).update(_records(body))

    def _member(self, fields: tuple[bytes, ...], extended: Mapping[bytes, bytes]) -> Member:
        name, mode, uid, gid, size, mtime, _, flag, link, magic = fields[:10]
        if any(key.startswith(b"GNU.sparse") for key in extended):
            raise BadArchive("sparse files in an archive are not supported")
        if flag != _HARD_LINK and flag not in _KINDS:
            raise BadArchive(f"an entry of the unknown type {flag!r}")
        kind = stat.S_IFREG if flag == _HARD_LINK else _KINDS[flag]
        path = _text(name)
        prefix = _text(fields[15]) if magic == b"ustar\0" else b""
        if flag == b"\0" and path.endswith(b"/"):
            kind = stat.S_IFDIR
        bytes_of = _decimal_number(extended[b"size"]) if b"size" in extended else _number(size)
        return Member(
            path=extended.get(b"path", prefix + b"/" + path if prefix else path),
            mode=kind | (_number(mode) & 0o7777),
            uid=_id(extended.get(b"uid"), uid),
            gid=_id(extended.get(b"gid"), gid),
            mtime_ns=_time(extended[b"mtime"]) if b"mtime" in extended else _seconds(mtime) * 1_000_000_000,
            size=bytes_of if kind == stat.S_IFREG and flag != _HARD_LINK else 0,
            link=extended.get(b"linkpath", _text(link)),
            hard=flag == _HARD_LINK,
            device=(_number(fields[13]), _number(fields[14])) if flag in b"34" else (0, 0),
            xattrs={
                key.removeprefix(_XATTR): value for key, value in extended.items() if key.startswith(_XATTR)
            }
            or _NO_XATTRS,
            offset=self._at,
        )


def _records(body: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = 0
    while at < len(body):
        digits, space, _ = body[at : at + 9].partition(b" ")
        length = _decimal_number(digits) if space else 0
        record = body[at : at + length]
        name, equals, value = record[len(digits) + 1 : -1].partition(b"=")
        if len(record) != length or not record.endswith(b"\n") or not equals:
            raise BadArchive("a malformed extended header")
        yield name, value
        at += length


def _text(value: bytes) -> bytes:
    return value.split(b"\0", 1)[0]


def _number(value: bytes) -> int:
    """Octal digits, or GNU's binary form for what does not fit them."""
    if value[0] & 0x80:
        number = int.from_bytes(value, "big", signed=False) & ~(0x80 << 8 * (len(value) - 1))
        if value[0] != 0x80 or number >> 63:
            raise BadArchive("a number out of range in a tar header")
        return number
    digits = value.strip(b"\0 ")
    if not digits:
        return 0
    if not digits.isdigit() or b"8" in digits or b"9" in digits:
        raise BadArchive("a malformed number in a tar header")
    return int(digits, 8)


def _seconds(value: bytes) -> int:
    """As :func:`_number`, or what GNU writes for times before 1970."""
    if value[0] == 0xFF:
        return max(int.from_bytes(value, "big", signed=True), -_OCTAL_SIZE_MAX)
    return _number(value)


def _decimal_number(value: bytes) -> int:
    if not value.isdigit() or len(value) > 18:
        raise BadArchive("a malformed number in an extended header")
    return int(value)


def _id(extended: bytes | None, plain: bytes) -> int:
    value = _number(plain) if extended is None else _decimal_number(extended)
    if value > 0xFFFFFFFF:
        raise BadArchive("an owner out of range")
    return value


def _time(value: bytes) -> int:
    seconds, _, fraction = value.removeprefix(b"-").partition(b".")
    if not seconds.isdigit() or len(seconds) > 12 or (fraction and not fraction.isdigit()):
        raise BadArchive("a malformed time in an extended header")
    ns = int(seconds) * 1_000_000_000 + int(fraction[:9].ljust(9, b"0") or b"0")
    return -ns if value.startswith(b"-") else ns
