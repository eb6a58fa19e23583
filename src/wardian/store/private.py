"""Small files that hold keys: there whole or not at all, and for their owner's eyes alone."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path

from wardian.model.errors import Unavailable


class Exposed(Unavailable):
    """A file with a key that others than its owner may read."""

    code = "key_exposed"


def read(path: Path) -> bytes | None:
    """What is in the file, or None when there is none. Raises :class:`Exposed`."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return None
    with file:
        if stat.S_IMODE(os.fstat(file.fileno()).st_mode) & 0o077:
            raise Exposed(
                f"{path} holds a key, and others than its owner can read it", hint=f"chmod 600 {path}"
            )
        return file.read()


def publish(path: Path, content: bytes, *, mode: int = 0o600) -> None:
    """Put the file in place, over an earlier one: after a crash there is the one or the other."""
    descriptor, draft = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)  # 0600 from the start
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            os.fchmod(file.fileno(), mode)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    except BaseException:
        os.unlink(draft)
        raise


def kept(path: Path, make: Callable[[], bytes]) -> bytes:
    """What is in the file; from now on what ``make`` returns, if there is none. Raises :class:`Exposed`."""
    content = read(path)
    if content is None:
        content = make()
        publish(path, content)
    return content
