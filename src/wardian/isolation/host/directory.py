"""A machine's directory: its sockets, its status file, its disk image.

Unix socket paths are limited to 108 bytes whatever the directory is, so sockets are always named through a
descriptor of the directory (``/proc/self/fd/N/name``).
"""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CONTROL = "control.sock"  # the sentry's urpc
KEEPER = "keeper.sock"
STATUS = "status"  # what the keeper wrote: see launcher/launch.c
DISK = "disk.img"
PAUSED = "paused"  # exists while the sentry is, or may be, paused


class MachineDirectory:
    """``machines/<id>`` of a driver's state directory."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def create(self) -> None:
        """Make it; fails if it exists."""
        self.path.mkdir(mode=0o700, parents=True)

    def remove(self) -> None:
        """Remove it and everything in it. Idempotent."""
        shutil.rmtree(self.path, ignore_errors=True)

    def bind(self, name: str, kind: socket.SocketKind) -> socket.socket:
        """A socket of this kind bound to ``name``."""
        sock = socket.socket(socket.AF_UNIX, kind)
        try:
            with self._short() as short:
                sock.bind(f"{short}/{name}")
        except BaseException:
            sock.close()
            raise
        return sock

    def connect(self, name: str, kind: socket.SocketKind) -> socket.socket:
        """A non-blocking socket connected to ``name``."""
        sock = socket.socket(socket.AF_UNIX, kind)
        try:
            sock.setblocking(False)
            with self._short() as short:
                sock.connect(f"{short}/{name}")
        except BaseException:
            sock.close()
            raise
        return sock

    @contextmanager
    def _short(self) -> Iterator[str]:
        fd = os.open(self.path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            yield f"/proc/self/fd/{fd}"
        finally:
            os.close(fd)


__all__ = ["CONTROL", "DISK", "KEEPER", "PAUSED", "STATUS", "MachineDirectory"]
