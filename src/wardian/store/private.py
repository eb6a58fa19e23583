"""Small files that hold keys: there whole or not at all, and for their owner's eyes alone."""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Callable
from pathlib import Path

from wardian.model.errors import Unavailable
from wardian.store.durable import sync


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
    descriptor, draft = new_file(path.parent, path.name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            os.fchmod(file.fileno(), mode)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    except BaseException:
        draft.unlink()
        raise
    sync(path.parent)


def new_file(directory: Path, name: str) -> tuple[int, Path]:
    """A file of our own, mode 0600 from the start, open for writing. ``tempfile`` would make the path
    absolute, and whoever may work in a directory need not be able to reach it from the root."""
    path = directory / f".{name}-{secrets.token_hex(8)}"
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), path


def kept(path: Path, make: Callable[[], bytes]) -> bytes:
    """What is in the file; from now on what ``make`` returns, if there is none. Raises :class:`Exposed`."""
    content = read(path)
    if content is None:
        content = make()
        publish(path, content)
    return content
