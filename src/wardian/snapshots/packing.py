"""Packing the files of snapshots, apart: in a process of the lowest priority, one at a time."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from secrets import token_hex

from wardian.snapshots import files, packed
from wardian.snapshots.manifest import File
from wardian.snapshots.packed import NotWhatItWas
from wardian.store.durable import sync

COMMAND: Sequence[str] = (sys.executable, "-P", "-m", packed.__name__)
SIZE_MIN = 64 * 1024
"""Smaller files stay as they are."""
SHARE_MAX = 0.9
"""What does not become this much smaller on disk stays as it is."""
_WORDS_MAX = 500

_log = logging.getLogger(__name__)


class Packer:
    """Puts compressed files beside plain ones. ``scratch`` is on the same file system."""

    def __init__(self, scratch: Path, checkpoint: Callable[[str], None]) -> None:
        self._scratch, self._checkpoint = scratch, checkpoint
        self._hopeless: set[Path] = set()
        self._turn = asyncio.Lock()

    async def pack(self, plain: Path, file: File) -> bool:
        """Have a compressed file beside a plain one, checked and durable. False: it stays as it is.

        Cancellation ends it at once. Raises ``OSError``.
        """
        if file.size < SIZE_MIN or plain in self._hopeless:
            return False
        beside = files.packed(plain)
        async with self._turn:
            try:
                if await asyncio.to_thread(beside.exists):
                    await _run(plain, beside, file.digest)
                else:
                    await self._make(plain, beside, file.digest)
            except NotWhatItWas as error:
                _log.warning("%s is not compressed: %s", plain, error)
                self._hopeless.add(plain)
                await asyncio.to_thread(beside.unlink, missing_ok=True)
                return False
        return True

    async def _make(self, plain: Path, beside: Path, digest: str) -> None:
        draft = self._scratch / token_hex(8)
        try:
            await _run(plain, draft, digest)
            self._checkpoint("snapshot.packed")
            await asyncio.to_thread(_put, draft, plain, beside)
            self._checkpoint("snapshot.beside")
        finally:
            await asyncio.to_thread(draft.unlink, missing_ok=True)

    def forget(self, directory: Path) -> None:
        """A snapshot is gone."""
        self._hopeless = {path for path in self._hopeless if path.parent != directory}


def _put(draft: Path, plain: Path, beside: Path) -> None:
    if files.stored(draft) > SHARE_MAX * files.stored(plain):
        raise NotWhatItWas("it hardly becomes smaller")
    draft.rename(beside)
    sync(beside.parent)


async def _run(source: Path, target: Path, digest: str) -> None:
    """Have ``target`` hold what ``source`` does; one that is there is only checked. Raises ``OSError``."""
    process = await asyncio.create_subprocess_exec(
        *COMMAND, str(source), str(target), digest,
        env={},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        _, said = await process.communicate()
    except BaseException:
        with suppress(ProcessLookupError):
            process.kill()
        await asyncio.shield(process.wait())
        raise
    words = said.decode(errors="replace").strip()[-_WORDS_MAX:]
    if process.returncode == packed.REFUSED:
        raise NotWhatItWas(words)
    if process.returncode:
        raise OSError(abs(process.returncode), words)
