"""What runs hand over: files that outlive the machine they were made in, on the host, by name and digest.

The host reads them out of the guest itself, so a digest is of what is kept, whatever a program says. They
stay as long as their run is known. On disk a file is called ``DIGEST.NAME``: nothing beside it can get lost.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import shutil
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from weakref import WeakValueDictionary

from wardian.model.errors import Invalid, LimitExceeded, NotFound
from wardian.model.run import Run
from wardian.model.sandbox import Sandbox
from wardian.runs.works import RunWorks
from wardian.store.durable import sync
from wardian.store.private import new_file

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
FILES_MAX = 64
FILE_MAX, RUN_MAX = 64 << 20, 256 << 20
"""Bytes of one file, and of all of a run's."""

READ_S = 120
TOLD_S = 60
"""How long somebody may take to ask what became of a file; later, it is read once more."""

_DRAFT = "draft"
_KEPT = re.compile(rf"([0-9a-f]{{64}})\.({NAME.pattern})")
Check = Callable[[Run, Sandbox], Awaitable[object]]


@dataclass(frozen=True, slots=True)
class RunFile:
    """``size`` in bytes; ``digest`` is ``sha256:`` and hexadecimal digits."""

    name: str
    size: int
    digest: str


class RunFiles:
    """Of all runs, below ``directory``. ``check`` raises for a machine that may not speak for its run."""

    def __init__(self, works: RunWorks, directory: Path, check: Check) -> None:
        self._works, self._directory, self._check = works, directory, check
        self._under_way: dict[tuple[str, str, str], asyncio.Task[RunFile]] = {}
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def hand_over(self, run: Run, sandbox: Sandbox, name: str, path: str) -> RunFile | None:
        """Keep the file at ``path`` inside as ``name``, in the place of an earlier one. None: it is being
        read, ask again; no call is held open, as the machine may be captured meanwhile.

        Raises Invalid, NotFound, LimitExceeded, Superseded, and what the guest says of the path.
        """
        _check_name(name)
        key = (sandbox.id, name, path)
        if (task := self._under_way.get(key)) is None:
            if sum(sandbox.id == each for each, _, _ in self._under_way) >= FILES_MAX:
                raise _too_many()
            task = self._under_way[key] = asyncio.ensure_future(self._read(run, sandbox, name, path))
            task.add_done_callback(lambda _: self._forget_later(key, task))
            return None
        if not task.done():
            return None
        del self._under_way[key]
        return task.result()

    def _forget_later(self, key: tuple[str, str, str], task: asyncio.Task[RunFile]) -> None:
        def forget() -> None:
            if self._under_way.get(key) is task:
                del self._under_way[key]

        if not task.cancelled():
            task.exception()  # whoever asks is told; if nobody does, nobody is to be warned
        asyncio.get_running_loop().call_later(TOLD_S, forget)

    async def _read(self, run: Run, sandbox: Sandbox, name: str, path: str) -> RunFile:
        async with self._turns.setdefault(run.id, asyncio.Lock()):
            return await self._read_in_turn(run, sandbox, name, path)

    async def _read_in_turn(self, run: Run, sandbox: Sandbox, name: str, path: str) -> RunFile:
        await self._check(run, sandbox)
        directory = self._directory / run.id
        others = [each for each in await self.list(run.id) if each.name != name]
        if len(others) >= FILES_MAX:
            raise _too_many()
        room = min(FILE_MAX, RUN_MAX - sum(each.size for each in others))
        await asyncio.to_thread(_clear, directory)
        descriptor, draft = new_file(directory, _DRAFT)
        try:
            with os.fdopen(descriptor, "wb") as file:
                size, digest = await self._copy(sandbox, path, file, room)
                await asyncio.to_thread(_flush, file)
            await self._check(run, sandbox)
            await asyncio.to_thread(_put, draft, directory / f"{digest}.{name}")
        except BaseException:
            draft.unlink(missing_ok=True)
            raise
        kept = RunFile(name, size, f"sha256:{digest}")
        self._works.log(run.id, "run.file", name=name, size=size, digest=kept.digest)
        return kept

    async def _copy(self, sandbox: Sandbox, path: str, file: BinaryIO, room: int) -> tuple[int, str]:
        """From the guest into ``file``, up to ``room`` bytes; how many they were, and their digest."""
        size, digest = 0, hashlib.sha256()
        user = sandbox.surroundings.user
        async with asyncio.timeout(READ_S), self._works.sandboxes.guest(sandbox.id) as guest:
            entry = await guest.stat(path, user=user)
            if entry.type != "file":
                raise Invalid(f"{path[:200]!r} is no file", code="not_a_file", hint="pack a directory first")
            _, chunks = await guest.read(path, user=user)
            async for chunk in chunks:
                size += len(chunk)
                if size > room:
                    raise LimitExceeded(
                        f"{path[:200]!r} is too big: a file may have {FILE_MAX >> 20} MiB, all of a run's "
                        f"{RUN_MAX >> 20} MiB",
                        code="file_too_big",
                        hint="put what is bigger into a volume",
                    )
                digest.update(chunk)
                file.write(chunk)
        return size, digest.hexdigest()

    async def list(self, run_id: str) -> Sequence[RunFile]:
        """By name."""
        return await asyncio.to_thread(_listed, self._directory / run_id)

    async def find(self, run_id: str, name: str) -> tuple[RunFile, Path]:
        """A file and where it lies. Raises NotFound."""
        for each in await self.list(run_id):
            if each.name == name:
                return each, self._directory / run_id / f"{each.digest.removeprefix('sha256:')}.{name}"
        raise NotFound(
            f"run {run_id} handed over no file {name[:128]!r}",
            code="file_not_found",
            hint="`wardian run files RUN` lists them",
        )

    async def remove(self, run_id: str) -> None:
        """Remove what a run handed over. Idempotent."""
        async with self._turns.setdefault(run_id, asyncio.Lock()):
            await asyncio.to_thread(shutil.rmtree, self._directory / run_id, ignore_errors=True)

    async def close(self) -> None:
        """Leave what is being read: it is asked for again."""
        tasks = list(self._under_way.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _too_many() -> LimitExceeded:
    return LimitExceeded(
        f"a run hands over {FILES_MAX} files at most", code="too_many_files", hint="pack them into one"
    )


def _check_name(name: str) -> None:
    if not NAME.fullmatch(name):
        raise Invalid(
            f"{name[:128]!r} is no name for a file",
            code="bad_file_name",
            hint="1 to 128 letters, digits, '.', '-' and '_', the first a letter or digit",
        )


def _listed(directory: Path) -> Sequence[RunFile]:
    found = []
    for path in directory.iterdir() if directory.is_dir() else ():
        kept = _KEPT.fullmatch(path.name)
        with suppress(FileNotFoundError):  # another one takes its place just now
            if kept is not None:
                about = path.stat()
                found.append((about.st_mtime_ns, RunFile(kept[2], about.st_size, f"sha256:{kept[1]}")))
    newest = {file.name: file for _, file in sorted(found, key=lambda each: each[0])}
    return [newest[name] for name in sorted(newest)]


def _clear(directory: Path) -> None:
    """Make it, without what a crash left half-written."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    for draft in directory.glob(f".{_DRAFT}-*"):
        draft.unlink()


def _flush(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _put(draft: Path, path: Path) -> None:
    """In the place of what has the same name: after a crash there are both perhaps, and the newer counts."""
    os.replace(draft, path)
    digest, _, name = path.name.partition(".")
    for other in path.parent.glob(f"*.{name}"):
        if other.name.partition(".")[2] == name and other.name.partition(".")[0] != digest:
            other.unlink(missing_ok=True)
    sync(path.parent)


__all__ = ["RunFile", "RunFiles"]
