"""Files and directories between this machine and a sandbox: a file as it is, a directory as a tar stream."""

# ruff: noqa: ASYNC240 - a command copies one thing at a time; nobody else waits in its loop

from __future__ import annotations

import asyncio
import base64
import shlex
import stat
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from wardian.cli.archive import CHUNK, CopyFailed, Unpacker, pack, permissions
from wardian.cli.envd import Envd
from wardian.cli.output import err, note
from wardian.cli.processes import Command, capture, exit_status
from wardian.model.errors import Invalid, Kind, NotFound, WardianError

ERROR_MAX = 4096
FILE, DIRECTORY = "FILE_TYPE_FILE", "FILE_TYPE_DIRECTORY"


@dataclass(frozen=True, slots=True)
class Place:
    """One side of a copy: a path here (``sandbox`` None) or in a sandbox."""

    sandbox: str | None
    path: str


def parse_place(text: str) -> Place:
    """``ID:path`` is in a sandbox; what has no colon, or a slash before it, is here."""
    head, colon, path = text.partition(":")
    if colon and head.isalnum():
        return Place(head, path or ".")
    return Place(None, text)


async def upload(envd: Envd, source: Path, target: str) -> str:
    """Copy ``source`` into the sandbox, as ``cp -r`` would; the absolute path it has there."""
    if not source.exists():
        raise NotFound(f"{source}: no such file or directory")
    name = source.resolve().name
    entry = await _stat(envd, target)
    if target.endswith("/") or (entry and entry.get("type") == DIRECTORY):
        target = f"{target.rstrip('/')}/{name}"
    if source.is_dir():
        return await _upload_tree(envd, source, target)
    with _progress(name, source.stat().st_size) as count:
        path = await envd.upload(target, _counted(_read_file(source), count))
    if source.stat().st_mode & stat.S_IXUSR:
        await _must(envd, ["chmod", "+x", path])
    return path


async def download(envd: Envd, source: str, target: Path) -> Path:
    """Copy ``source`` out of the sandbox, as ``cp -r`` would; where it is now."""
    entry = await _stat(envd, source)
    if entry is None:
        raise NotFound(f"{source}: no such file or directory in the sandbox")
    if target.is_dir():
        target /= _safe_name(str(entry["name"]))
    elif not target.parent.is_dir():
        raise NotFound(f"{target.parent}: no such directory")
    kind = entry.get("type")
    if kind == DIRECTORY:
        await _download_tree(envd, str(entry["path"]), target)
    elif kind == FILE:
        await _download_file(envd, str(entry["path"]), target, int(entry.get("mode", 0)))
    else:
        raise Invalid(f"{source}: neither a file nor a directory")
    return target


async def _upload_tree(envd: Envd, source: Path, target: str) -> str:
    """As one tar file under a temporary name, unpacked by the sandbox's own tar."""
    archive = f"/tmp/.wardian-copy-{uuid.uuid4().hex}.tar"
    try:
        with _progress(source.resolve().name, None) as count:
            await envd.upload(archive, _counted(pack(source), count))
        entry = await _stat(envd, target)
        if entry is None:
            entry = (await envd.call("filesystem.Filesystem/MakeDir", {"path": target}))["entry"]
        path = str(entry["path"])
        await _must(envd, ["tar", "-x", "--no-same-owner", "-f", archive, "-C", path])
    finally:
        await capture(envd, ["rm", "-f", archive])
    return path


async def _download_file(envd: Envd, source: str, target: Path, mode: int) -> None:
    draft = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
    try:
        async with envd.download(source) as response:
            total = response.headers.get("Content-Length")
            with _progress(target.name, int(total) if total else None) as count, draft.open("wb") as file:
                async for chunk in _counted(response.aiter_bytes(CHUNK), count):
                    file.write(chunk)
        draft.chmod(permissions(mode))
        draft.rename(target)
    finally:
        draft.unlink(missing_ok=True)


async def _download_tree(envd: Envd, source: str, target: Path) -> None:
    target.mkdir(exist_ok=True)
    command = Command(["tar", "-c", "-f", "-", "-C", source, "."], stdin=False)
    unpacker, complaints, status = Unpacker(target), b"", 0
    try:
        with _progress(target.name, None) as count:
            async with envd.follow("process.Process/Start", command.request) as events:
                async for event in events:
                    data = event["event"].get("data") or {}
                    if piece := base64.b64decode(data.get("stdout", "")):
                        await unpacker.feed(piece)
                        count(len(piece))
                    complaints = (complaints + base64.b64decode(data.get("stderr", "")))[:ERROR_MAX]
                    if "end" in event["event"]:
                        status = exit_status(event["event"]["end"])
    finally:
        await unpacker.close()
    if status:
        raise CopyFailed(f"tar in the sandbox failed: {complaints.decode(errors='replace').strip()}")
    for name in unpacker.skipped:
        note(f"skipped {name!r}: no file, directory or link that stays inside")


async def _read_file(path: Path) -> AsyncIterator[bytes]:
    with path.open("rb") as file:
        while chunk := await asyncio.to_thread(file.read, CHUNK):
            yield chunk


async def _counted(chunks: AsyncIterator[bytes], count: Callable[[int], None]) -> AsyncIterator[bytes]:
    async for chunk in chunks:
        count(len(chunk))
        yield chunk


async def _stat(envd: Envd, path: str) -> dict[str, Any] | None:
    try:
        entry: dict[str, Any] = (await envd.call("filesystem.Filesystem/Stat", {"path": path}))["entry"]
    except WardianError as error:
        if error.kind is Kind.NOT_FOUND:
            return None
        raise
    return entry


async def _must(envd: Envd, argv: list[str]) -> None:
    status, kept = await capture(envd, argv)
    if status:
        raise CopyFailed(f"`{shlex.join(argv)}` in the sandbox failed: {kept.text('stderr').strip()}")


def _safe_name(name: str) -> str:
    if name in ("", ".", "..") or "/" in name or "\0" in name:
        raise Invalid(f"the sandbox calls it {name!r}", hint="give the destination a file name of its own")
    return name


@contextmanager
def _progress(name: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """A progress bar on a terminal; nothing elsewhere."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as progress:
        task = progress.add_task(name, total=total)
        yield lambda size: progress.advance(task, size)
