"""Files between this machine and a volume, over its content API."""

# ruff: noqa: ASYNC240 - a command copies one thing at a time; nobody else waits in its loop

from __future__ import annotations

import posixpath
import stat
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from wardian.cli.remote import Remote, refusal, unreachable
from wardian.model.errors import Invalid, Kind, NotFound, WardianError
from wardian.model.volume import NAME_FORM

CHUNK = 1 << 20
DEPTH = 100


@dataclass(frozen=True, slots=True)
class Place:
    """One side of a copy: a path here (``volume`` None) or in a volume."""

    volume: str | None
    path: str


def parse_place(text: str) -> Place:
    """``NAME:path`` is in a volume; what has no colon, or a slash before it, is here."""
    head, colon, path = text.partition(":")
    if colon and NAME_FORM.fullmatch(head):
        return Place(head, "/" + path.lstrip("/"))
    return Place(None, text)


class Content:
    """One volume's content, opened by its token."""

    def __init__(self, there: Remote, volume_id: str, token: str) -> None:
        self._there, self._base = there, f"{there.address.url}/volumecontent/{volume_id}"
        self._headers = {"Authorization": f"Bearer {token}"}

    async def list(self, path: str, *, depth: int = 1) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = (await self._call("GET", "dir", path=path, depth=depth)).json()
        return found

    async def put(self, source: str, target: str) -> int:
        """Copy from here; how many files."""
        here = Path(source)
        if not here.exists():
            raise NotFound(f"{source}: no such file or directory")
        target = await self._into(target, here.resolve().name)
        if not here.is_dir():
            await self._upload(here, target)
            return 1
        count = 0
        await self._call("POST", "dir", path=target, force="true")
        for each in sorted(here.rglob("*")):
            place = posixpath.join(target, each.relative_to(here).as_posix())
            if each.is_symlink():
                continue
            if each.is_dir():
                await self._call("POST", "dir", path=place, force="true")
            elif each.is_file():
                await self._upload(each, place)
                count += 1
        return count

    async def get(self, source: str, target: str) -> int:
        """Copy to here; how many files. Names come from the volume, so none may lead out of ``target``."""
        told = (await self._call("GET", "path", path=source)).json()
        here = Path(target)
        if here.is_dir() and told["name"] not in ("", "/"):
            here = here / _checked(told["name"])
        if told["type"] != "directory":
            await self._download(source, here)
            return 1
        here.mkdir(parents=True, exist_ok=True)
        return await self._get_tree(told["path"], here)

    async def _get_tree(self, path: str, here: Path) -> int:
        count = 0
        for item in await self.list(path):
            place = here / _checked(item["name"])
            if place.is_symlink():
                raise Invalid(f"{place} is a symbolic link; nothing is written through it")
            if item["type"] == "directory":
                place.mkdir(exist_ok=True)
                count += await self._get_tree(item["path"], place)
            elif item["type"] == "file":
                await self._download(item["path"], place)
                count += 1
        return count

    async def _into(self, target: str, name: str) -> str:
        """Where ``cp`` would put something called ``name``."""
        try:
            told = (await self._call("GET", "path", path=target)).json()
        except WardianError as error:
            if error.kind is not Kind.NOT_FOUND:
                raise
            return posixpath.join(target, name) if target.endswith("/") else target
        return posixpath.join(target, name) if told["type"] == "directory" else target

    async def _upload(self, here: Path, path: str) -> None:
        async def chunks() -> AsyncIterator[bytes]:
            with here.open("rb") as file:
                while piece := file.read(CHUNK):
                    yield piece

        mode = stat.S_IMODE(here.stat().st_mode)
        await self._call("PUT", "file", path=path, mode=mode, force="true", content=chunks())

    async def _download(self, path: str, here: Path) -> None:
        draft = here.with_name(here.name + ".part")
        try:
            async with self._there.http.stream(
                "GET", f"{self._base}/file", params={"path": path}, headers=self._headers
            ) as response:
                if response.is_error:
                    await response.aread()
                    raise refusal(response)
                with draft.open("wb") as file:
                    async for piece in response.aiter_bytes():
                        file.write(piece)
            draft.replace(here)
        except httpx.TransportError as error:
            raise unreachable(self._there.address.url, error) from error
        finally:
            draft.unlink(missing_ok=True)

    async def _call(self, method: str, what: str, *, content: Any = None, **query: Any) -> httpx.Response:
        try:
            response = await self._there.http.request(
                method, f"{self._base}/{what}", params=query, headers=self._headers, content=content
            )
        except httpx.TransportError as error:
            raise unreachable(self._there.address.url, error) from error
        if response.is_error:
            raise refusal(response)
        return response


def _checked(name: str) -> str:
    """A name from the server, if it is one name. Raises :class:`Invalid`."""
    if name in ("", ".", "..") or "/" in name or "\0" in name:
        raise Invalid(f"the volume has an entry that cannot be a file's name: {name!r}")
    return name
