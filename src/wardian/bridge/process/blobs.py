"""Recorded answers that are too long for a row: one file each, named after its effect; bounded together."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

MOST = 8 << 30
"""Bytes of all of them. What comes when they are full is not kept, and its replay refused."""


class Blobs:
    """``directory`` is below the bridge's own, where it works."""

    def __init__(self, directory: Path = Path("blobs"), most: int = MOST) -> None:
        directory.mkdir(exist_ok=True, mode=0o700)
        self._directory, self._most = directory, most
        self._total = sum(each.stat().st_size for each in directory.iterdir())

    def keep(self, effect: str, body: bytes) -> bool:
        """On the disk when this returns; False where there is no room."""
        if self._total + len(body) > self._most:
            return False
        self.forget([effect])
        with (self._directory / effect).open("wb") as file:
            file.write(body)
            file.flush()
            os.fsync(file.fileno())
        self._total += len(body)
        return True

    def read(self, effect: str) -> bytes | None:
        """None when there is none."""
        try:
            return (self._directory / effect).read_bytes()
        except FileNotFoundError:
            return None

    def forget(self, effects: Iterable[str]) -> None:
        """Remove those that there are."""
        for effect in effects:
            path = self._directory / effect
            try:
                size = path.stat().st_size
                path.unlink()
            except FileNotFoundError:
                continue
            self._total -= size
