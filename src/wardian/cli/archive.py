"""Directories as tar streams, both ways, without a temporary file on this side.

What a sandbox sends is not trusted: only files, directories and links that stay inside are made, and nothing
lands outside the destination.
"""

from __future__ import annotations

import asyncio
import os
import stat
import tarfile
import threading
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path, PurePosixPath

from wardian.model.errors import WardianError

CHUNK = 256 * 1024


class CopyFailed(WardianError):
    """The copy is not complete."""

    code = "copy_failed"


def permissions(mode: int) -> int:
    """Of a sandbox's permission bits those that are harmless here; the owner can always read and write."""
    return mode & 0o777 | stat.S_IRUSR | stat.S_IWUSR


async def pack(source: Path) -> AsyncIterator[bytes]:
    """The directory ``source`` as a tar stream, made as fast as it is taken. Raises :class:`CopyFailed`."""
    reading, writing = os.pipe()
    failures: list[OSError] = []

    def run() -> None:
        try:
            with os.fdopen(writing, "wb") as file, tarfile.open(fileobj=file, mode="w|") as tar:
                tar.add(source, arcname=".", filter=_anonymous)
        except OSError as error:  # BrokenPipeError among them: nobody takes it any more
            failures.append(error)

    thread = threading.Thread(target=run, daemon=True, name="pack")
    thread.start()
    try:
        while piece := await asyncio.to_thread(os.read, reading, CHUNK):
            yield piece
        await asyncio.to_thread(thread.join)
        if failures:
            raise CopyFailed(f"cannot read {source}: {failures[0]}")
    finally:
        os.close(reading)


def _anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """Who owns the files here is nobody's business there; sockets and devices stay."""
    if not (member.isreg() or member.isdir() or member.issym() or member.islnk()):
        return None
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member


class Unpacker:
    """Unpacks a tar stream into the directory ``root``, in a thread. ``skipped``: what it did not make."""

    def __init__(self, root: Path) -> None:
        self.skipped: list[str] = []
        self._root = root.resolve()
        self._failure: Exception | None = None
        self._reading, self._writing = os.pipe()
        self._thread = threading.Thread(target=self._run, daemon=True, name="unpack")
        self._thread.start()

    async def feed(self, piece: bytes) -> None:
        """The next bytes of the stream; waits while the disk is behind. Raises :class:`CopyFailed`."""
        try:
            await asyncio.to_thread(self._write, piece)
        except BrokenPipeError:
            await self.close()

    async def close(self) -> None:
        """No more bytes will come: wait until all is on disk. Raises :class:`CopyFailed`."""
        if self._writing >= 0:
            os.close(self._writing)
            self._writing = -1
        await asyncio.to_thread(self._thread.join)
        if self._failure:
            raise CopyFailed(f"cannot unpack what the sandbox sent: {self._failure}") from self._failure

    def _write(self, piece: bytes) -> None:
        view = memoryview(piece)
        while view:
            view = view[os.write(self._writing, view) :]

    def _run(self) -> None:
        with os.fdopen(self._reading, "rb") as file:
            try:
                with tarfile.open(fileobj=file, mode="r|") as tar:
                    for member in tar:
                        if not self._make(tar, member):
                            self.skipped.append(member.name)
                while file.read(CHUNK):  # tar pads its end; the sender must not find the pipe closed
                    pass
            except (tarfile.TarError, OSError, ValueError, EOFError) as error:
                self._failure = error

    def _make(self, tar: tarfile.TarFile, member: tarfile.TarInfo) -> bool:
        """Make one member, or answer False. Links made before are seen: every parent is resolved."""
        parts = PurePosixPath(member.name).parts
        path = self._root.joinpath(*parts)
        if member.name.startswith("/") or ".." in parts:
            return False
        if path == self._root:
            return member.isdir()
        if not self._inside(path.parent.resolve()):
            return False
        if member.isdir():
            if path.is_symlink():
                return False
            path.mkdir(parents=True, exist_ok=True)
            path.chmod(permissions(member.mode) | stat.S_IXUSR)
        elif member.isreg():
            self._write_file(tar, member, path)
        elif member.issym() and self._inside((path.parent / member.linkname).resolve()):
            _clear(path)
            path.symlink_to(member.linkname)
        else:
            return False
        return True

    def _write_file(self, tar: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> None:
        content = tar.extractfile(member)
        assert content is not None
        path.parent.mkdir(parents=True, exist_ok=True)
        _clear(path)
        with path.open("xb") as file:
            while chunk := content.read(CHUNK):
                file.write(chunk)
        path.chmod(permissions(member.mode))

    def _inside(self, path: Path) -> bool:
        return path == self._root or self._root in path.parents


def _clear(path: Path) -> None:
    with suppress(FileNotFoundError):
        path.unlink()
