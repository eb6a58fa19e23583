"""Nothing that holds a secret is published: what is kept on purpose is searched first, and attested then.

The search itself is a port: only the process that keeps the secrets knows what to look for.
"""

from __future__ import annotations

import asyncio
import bisect
import json
import mmap
import os
import re
import stat
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from wardian.images import tar
from wardian.images.erofs import Image
from wardian.isolation.port import MachineImage, RootImage
from wardian.model.errors import Conflict, NotFound
from wardian.sandboxes.benches import tenant_of
from wardian.sandboxes.files import LAYER
from wardian.snapshots.attest import SigningKey
from wardian.snapshots.scan import Hit, Report
from wardian.store.clock import now_us

Search = Callable[[str, Sequence[Path]], Awaitable[Report]]
"""Searches files for everything of a tenant that must be in none of them: done by whoever keeps that."""

_STREAM = re.compile(r"(\w+ at (0x[0-9a-f]+))")
TOLD_MAX = 5


class SecretFound(Conflict):
    """A secret is in what was about to be published, which is dropped."""

    code = "secret_in_snapshot"


class SnapshotInspector:
    """Searches what a tenant publishes, one thing at a time, and keeps signed attestations of it."""

    def __init__(
        self,
        search: Search,
        key: SigningKey,
        directory: Path,
        *,
        now_us: Callable[[], int] = now_us,
    ) -> None:
        self._search, self._key, self._directory, self._now_us = search, key, directory, now_us
        self._turn = asyncio.Lock()

    async def inspect(self, tenant: str, snapshot_id: str, image: MachineImage) -> Inspected:
        """Search a captured machine or its files. Raises :class:`SecretFound`."""
        seen = await self.search(tenant, snapshot_id, image)
        seen.check("the snapshot")
        return seen

    async def inspect_root(self, tenant: str, root: RootImage) -> None:
        """Search and attest a root image that a build made. Raises :class:`SecretFound`."""
        report = await self._scan(tenant, [root.path])
        name = f"root-{root.digest.removeprefix('sha256:')}"
        seen = Inspected(self, name, report)
        seen.check("the image")
        await seen.attest(root.digest)

    async def search(self, tenant: str, snapshot_id: str, image: MachineImage) -> Inspected:
        """The same as :meth:`inspect`, whatever it finds."""
        report = await self._scan(tenant, [image.directory / name for name in image.files])
        return Inspected(self, snapshot_id, report)

    async def _scan(self, tenant: str, paths: Sequence[Path]) -> Report:
        async with self._turn:  # one at a time takes all there is
            report = await self._search(tenant_of(tenant), paths)
        places = {path.name: Places(path) for path in paths}
        hits = await asyncio.to_thread(lambda: [placed(hit, places[hit.source]) for hit in report.hits])
        return replace(report, hits=hits)

    async def keep(self, name: str, digest: str, report: Report) -> Mapping[str, Any]:
        """Sign what came of a search, and keep it."""
        attestation = self._key.attest(name, digest, report, at_us=self._now_us())
        await asyncio.to_thread(self._write, name, attestation)
        return attestation

    def _write(self, name: str, attestation: Mapping[str, Any]) -> None:
        self._directory.mkdir(parents=True, exist_ok=True)
        draft = self._directory / f".{name}.new"
        draft.write_text(json.dumps(attestation, sort_keys=True))
        os.replace(draft, self._directory / f"{name}.json")

    async def attestation(self, name: str) -> Mapping[str, Any]:
        """What was attested last of a snapshot (by id) or image (``root-<hex>``). Raises NotFound."""
        path = self._directory / f"{Path(name).name}.json"
        try:
            found: Mapping[str, Any] = json.loads(await asyncio.to_thread(path.read_text))
        except OSError:
            raise NotFound(
                f"nothing was attested of {name[:80]!r}",
                code="attestation_not_found",
                hint="`wardian snapshot scan` searches it now",
            ) from None
        return found


@dataclass(frozen=True, slots=True)
class Inspected:
    """What was searched, and what came of it."""

    inspector: SnapshotInspector
    name: str
    report: Report

    def check(self, what: str) -> None:
        """Raise :class:`SecretFound` for a hit."""
        hits = self.report.hits
        if hits:
            places = "; ".join(str(hit) for hit in hits[:TOLD_MAX])
            more = f"; and {len(hits) - TOLD_MAX} more" if len(hits) > TOLD_MAX else ""
            raise SecretFound(
                f"{what} would hold secrets: {places}{more}",
                hint="nothing was published and nothing is lost; remove them from files and processes "
                "inside, then try again",
            )

    async def attest(self, digest: str) -> None:
        await self.sign(digest)

    async def sign(self, digest: str) -> Mapping[str, Any]:
        """The attestation, kept as well."""
        return await self.inspector.keep(self.name, digest, self.report)


def placed(hit: Hit, places: Places) -> Hit:
    """The hit, with the file inside the archive or image that it is in."""
    if not hit.inside:
        return replace(hit, place=places.at(hit.offset))
    match = _STREAM.fullmatch(hit.inside[0])
    place = places.at(int(match[2], 16)) if match else ""
    return replace(hit, inside=(f"{hit.inside[0]} ({place})", *hit.inside[1:])) if place else hit


class Places:
    """Which file inside an archive or image lies at an offset. Read only when somebody asks."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: tuple[list[int], list[tuple[int, str]]] | None = None

    def at(self, offset: int) -> str:
        """The absolute path of the file there, or ""."""
        if self._known is None:
            found = sorted(self._read())
            self._known = [begin for begin, _, _ in found], [(end, path) for _, end, path in found]
        begins, files = self._known
        index = bisect.bisect_right(begins, offset) - 1
        return files[index][1] if index >= 0 and offset < files[index][0] else ""

    def _read(self) -> Iterator[tuple[int, int, str]]:
        if self._path.suffix == ".erofs":
            with Image(self._path) as image:
                for node in image.walk():
                    if stat.S_ISREG(node.mode):
                        begin = node.block * image.block_size
                        yield begin, begin + node.size, node.path
        elif self._path.name == LAYER:
            with self._path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as archive:
                for member in tar.members(archive):
                    if member.size:
                        path = "/" + os.fsdecode(member.path).lstrip("./")
                        yield member.offset, member.offset + member.size, path
