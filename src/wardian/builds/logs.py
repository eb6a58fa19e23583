"""What builds say: a file of lines per build, only ever appended to, and bounded.

    <directory>/<build id>.jsonl        {"at": …, "level": …, "message": …, "step": …}

The lines of a build under way are also in memory, because whoever started it asks for them all the time.
"""

from __future__ import annotations

import json
from collections.abc import Sequence, Set
from dataclasses import asdict
from pathlib import Path
from typing import IO

from wardian.model.build import BuildLine

BYTES_MAX = 4 << 20
"""Of one build's log. What comes after is not kept, and the log says so."""

MESSAGE_MAX = 4096
LEVELS = ("debug", "info", "warn", "error")
_CUT = "this log is full: what the build says from here on is not kept"


class BuildLogs:
    """The logs in one directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._open: dict[str, BuildLog] = {}

    def begin(self, build_id: str) -> BuildLog:
        """The log of a build that starts now."""
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        log = self._open[build_id] = BuildLog(self._path(build_id))
        return log

    def end(self, build_id: str) -> None:
        """The build is over: its lines are in the file."""
        if (log := self._open.pop(build_id, None)) is not None:
            log.close()

    def read(self, build_id: str) -> Sequence[BuildLine]:
        """All lines of a build, oldest first. May read a file."""
        if (log := self._open.get(build_id)) is not None:
            return log.lines
        try:
            text = self._path(build_id).read_text()
        except FileNotFoundError:
            return ()
        # A server that was killed may have left half a line.
        return [BuildLine(**json.loads(line)) for line in text.splitlines() if line.endswith("}")]

    def remove(self, build_id: str) -> None:
        self.end(build_id)
        self._path(build_id).unlink(missing_ok=True)

    def collect(self, known: Set[str]) -> None:
        """Remove the logs of builds that are not ``known``."""
        for path in self._directory.glob("*.jsonl"):
            if path.stem not in known:
                path.unlink(missing_ok=True)

    def _path(self, build_id: str) -> Path:
        return self._directory / f"{build_id}.jsonl"


class BuildLog:
    """The log of a build under way."""

    def __init__(self, path: Path) -> None:
        self.lines: list[BuildLine] = []
        self._file: IO[str] | None = path.open("a")
        self._bytes = 0

    def add(self, line: BuildLine) -> None:
        """Keep a line: at once in memory, and out of the hands of this process when it returns."""
        if self._file is None or self._bytes > BYTES_MAX:
            return
        message = line.message[:MESSAGE_MAX]
        if self._bytes + len(message) > BYTES_MAX:
            message, self._bytes = _CUT, BYTES_MAX
        kept = BuildLine(line.at, line.level if line.level in LEVELS else "info", message, line.step)
        self.lines.append(kept)
        text = json.dumps(asdict(kept)) + "\n"
        self._bytes += len(text)
        self._file.write(text)
        self._file.flush()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
