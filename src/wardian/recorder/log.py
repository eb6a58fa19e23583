"""The event log of a sandbox: append-only JSON lines on the host, each one chained to the one before.

A record is ``{"seq", "at", "type", ..., "prev"}``: ``prev`` is the SHA-256 of the previous line's bytes, so
nothing can be changed, dropped or inserted without breaking every link after it. The guest never writes here.

``append`` is one write to the page cache (it survives ``kill -9``); ``sync`` is for the moments that must
survive a power cut. A crash can tear the last line: it is cut off when the log is opened again.
"""

from __future__ import annotations

import json
import os
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from wardian.store.durable import sync

RECORD_BYTES_MAX = 16 * 1024
TEXT_CHARS_MAX = 4096
ITEMS_MAX = 256
LOG_BYTES_MAX = 256 << 20
_GENESIS = "0" * 64
_INDEX_EVERY = 256
_TAIL = RECORD_BYTES_MAX * 2

Redact = Callable[[Mapping[str, Any]], Mapping[str, Any]]


def _as_it_is(fields: Mapping[str, Any]) -> Mapping[str, Any]:
    return fields


class SandboxLog:
    """The log of one sandbox. Cheap to hold: no file is open between a ``release`` and the next append."""

    def __init__(self, path: Path, *, now_us: Callable[[], int], redact: Redact = _as_it_is) -> None:
        self._path = path
        self._now_us = now_us
        self._redact = redact
        self.always: Mapping[str, Any] = {}
        """What every record says, beside what it is told. May be changed at any time."""

        self._fd: int | None = None
        self._seq = 0
        self._prev = _GENESIS
        self._size = 0
        self._dropped = 0
        self._index: list[tuple[int, int]] = [(0, 0)]  # sequence numbers and where the next record begins

    @property
    def seq(self) -> int:
        """The number of the last record."""
        self._open()
        return self._seq

    def append(self, type: str, /, **fields: Any) -> None:
        """Add one record. Oversized fields are cut; when the log is full one last record says so."""
        fd = self._open()
        if self._size >= LOG_BYTES_MAX:
            return
        line = self._line(type, fields)
        if self._size + len(line) >= LOG_BYTES_MAX:
            line = self._line("log_full", {})
            self._size = LOG_BYTES_MAX
        if not self._write(fd, line):
            return
        self._seq += 1
        self._prev = sha256(line).hexdigest()
        self._size += len(line)
        if self._seq % _INDEX_EVERY == 0:
            self._index.append((self._seq, self._size))

    def _write(self, fd: int, line: bytes) -> bool:
        """Write one whole line or none. A full disk costs records, not a transition; the next says so."""
        try:
            whole = os.write(fd, line) == len(line)
        except OSError:
            whole = False
        if whole:
            self._dropped = 0
        else:
            self._dropped += 1
            os.ftruncate(fd, self._size)
        return whole

    def _line(self, type: str, fields: Mapping[str, Any]) -> bytes:
        head = {"seq": self._seq + 1, "at": self._now_us(), "type": type}
        head |= self.always
        body = {key: _bounded(value) for key, value in self._redact(fields).items() if key not in head}
        if self._dropped:
            body["records_dropped_before"] = self._dropped
        line = _encode(head | body | {"prev": self._prev})
        if len(line) > RECORD_BYTES_MAX:
            line = _encode(head | {"cut": sorted(body)[:ITEMS_MAX], "prev": self._prev})
        return line

    def read(self, *, after_seq: int = 0, limit: int = 1000) -> Sequence[Mapping[str, Any]]:
        """Up to ``limit`` records with a sequence number above ``after_seq``, oldest first."""
        self._open()
        start = self._index[bisect_right(self._index, (max(after_seq, 0), 1 << 63)) - 1][1]
        records: list[Mapping[str, Any]] = []
        for line in self._lines(start):
            record = json.loads(line)
            if record["seq"] > after_seq:
                records.append(record)
                if len(records) == limit:
                    break
        return records

    def verify(self) -> int:
        """Walk the whole chain; return the number of records. Raises :class:`ValueError` at a broken link."""
        prev = _GENESIS
        count = 0
        for line in self._lines(0):
            count += 1
            record = json.loads(line)
            if record["prev"] != prev or record["seq"] != count:
                raise ValueError(f"the log of {self._path.stem} is broken at record {count}")
            prev = sha256(line).hexdigest()
        return count

    def sync(self) -> None:
        """Make everything appended so far survive a power cut. Blocks; may be called from another thread."""
        sync(self._path)

    def release(self) -> None:
        """Let go of the file until the next append."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _open(self) -> int:
        if self._fd is None:
            first = self._seq == 0
            self._fd = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            if first:
                self._recover(self._fd)
        return self._fd

    def _recover(self, fd: int) -> None:
        """Find the end of a log that an earlier process wrote; cut off a torn last line."""
        size = os.fstat(fd).st_size
        tail = os.pread(fd, _TAIL, max(0, size - _TAIL))
        whole = tail.rfind(b"\n") + 1
        if whole < len(tail):
            size -= len(tail) - whole
            os.ftruncate(fd, size)
        self._size = size
        if whole:
            last = tail[tail.rfind(b"\n", 0, whole - 1) + 1 : whole]
            self._seq = int(json.loads(last)["seq"])
            self._prev = sha256(last).hexdigest()
        if self._seq >= _INDEX_EVERY:
            self._rebuild_index()

    def _rebuild_index(self) -> None:
        position = 0
        for number, line in enumerate(self._lines(0), start=1):
            position += len(line)
            if number % _INDEX_EVERY == 0:
                self._index.append((number, position))

    def _lines(self, start: int) -> Iterator[bytes]:
        with self._path.open("rb") as file:
            file.seek(start)
            for line in file:
                if line.endswith(b"\n"):
                    yield line


class Recorder:
    """The logs of a node: one file per sandbox under one directory."""

    def __init__(self, directory: Path, *, now_us: Callable[[], int], redact: Redact = _as_it_is) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        directory.chmod(0o700)
        self._directory = directory
        self._now_us = now_us
        self._redact = redact

    def log(self, sandbox_id: str) -> SandboxLog:
        """The log of one sandbox. Exactly one object per sandbox may append."""
        return SandboxLog(self._directory / f"{sandbox_id}.jsonl", now_us=self._now_us, redact=self._redact)

    def remove(self, sandbox_id: str) -> None:
        """Remove a log that nobody appends to any more. Idempotent."""
        (self._directory / f"{sandbox_id}.jsonl").unlink(missing_ok=True)


def _encode(record: Mapping[str, Any]) -> bytes:
    return (
        json.dumps(record, separators=(",", ":"), ensure_ascii=False, default=str).encode(
            errors="backslashreplace"
        )
        + b"\n"
    )


def _bounded(value: Any) -> Any:
    if isinstance(value, str):
        return value if len(value) <= TEXT_CHARS_MAX else value[:TEXT_CHARS_MAX] + "…"
    if isinstance(value, bytes):
        return _bounded(value[: TEXT_CHARS_MAX + 1].decode(errors="backslashreplace"))
    if isinstance(value, Mapping):
        return {str(key): _bounded(item) for key, item in list(value.items())[:ITEMS_MAX]}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_bounded(item) for item in list(value)[:ITEMS_MAX]]
    return value
