"""The files a build may copy from: tars by digest, as they were uploaded."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from wardian.model.errors import NotFound

_NAME = re.compile(r"context:([0-9a-f]{64})")


class Context(Protocol):
    """Where a ``context:<sha256>`` is."""

    def path(self, digest: str) -> Path:
        """The tar with this digest (64 hex digits). Raises NotFound."""


@dataclass(frozen=True, slots=True)
class Directory:
    """Tars in one directory, named after their digests."""

    directory: Path

    def path(self, digest: str) -> Path:
        path = self.directory / f"{digest}.tar"
        if not path.is_file():
            raise NotFound(
                f"the files {digest[:12]}… of a COPY were not uploaded",
                code="files_missing",
                hint="upload them, then start the build again",
            )
        return path


def digest_in(files: str) -> str | None:
    """The digest in a step's ``files``, or None when it names something else."""
    match = _NAME.fullmatch(files)
    return match[1] if match else None
