"""``wardian template build``: a directory with a manifest becomes a template on the server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
from rich.live import Live
from rich.spinner import Spinner
from rich.text import Text

from wardian.builds import find
from wardian.builds import lock as locks
from wardian.builds.find import Manifest
from wardian.builds.packing import Folder
from wardian.cli import remote
from wardian.cli.output import err, note
from wardian.cli.remote import Address, Remote
from wardian.model.build import Lock, Plan
from wardian.model.errors import Invalid, NotFound, WardianError
from wardian.model.isolation import Isolation

POLL_FIRST_S, POLL_MAX_S = 0.1, 1.0
UPLOAD_TIMEOUT = httpx.Timeout(60, write=600, read=600)
OVER = ("ready", "error")
_PIECE = 1 << 20


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the command line asks for. None leaves it to the manifest."""

    directory: Path
    file: str | None
    name: str | None
    tags: Sequence[str]
    arguments: Mapping[str, str]
    cpus: int | None
    memory_mib: int | None
    disk_mib: int | None
    isolation: Isolation | None
    cached: bool
    locked: bool
    house: bool = False  # for every tenant
    lock: Path | None = None  # where its lock is kept; None: beside the manifest


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a build, as the server tells it, and where its lock was written."""

    told: Mapping[str, Any]
    lock: Path


async def build(server: Address, wanted: Wanted, *, quiet: bool) -> Outcome:
    """Read the manifest, send what it needs, and follow the build to its end.

    Raises :class:`BuildError` when it fails, and the errors of manifests and of the server.
    """
    path = find.find(wanted.directory, wanted.file)
    folder = find.folder_of(path)
    lock_path = wanted.lock or path.parent / locks.NAME
    try:
        async with remote.connect(server) as there:
            names = await _template_names(there)
            manifest = find.read(
                path, folder, arguments=wanted.arguments, is_template=lambda name: name in names
            )
            for remark in manifest.remarks:
                note(remark)
            lock = _read_lock(lock_path) if wanted.locked else None
            template, build_id = await _request(there, wanted, manifest)
            await _upload(there, template, folder)
            plan = replace(_plan(wanted, manifest), force=not wanted.cached)
            body = {"plan": asdict(plan), "lock": None if lock is None else locks.plain(lock)}
            address = f"/templates/{quote(template, safe='')}/builds/{build_id}"
            await there.call("POST", f"/wardian{address}", body=body)
            await _follow(there, address, quiet=quiet)
            told: dict[str, Any] = (await there.call("GET", f"/wardian/builds/{build_id}")).json()
    finally:
        folder.close()
    if lock is None:
        await asyncio.to_thread(_write_lock, lock_path, locks.of_plain(told["lock"]))
    return Outcome(told, lock_path)


class BuildError(WardianError):
    """The server could not build it; the message is the build's own."""

    code = "build_failed"


async def _template_names(there: Remote) -> frozenset[str]:
    found = (await there.call("GET", "/templates")).json()
    return frozenset(name for item in found for name in (*item.get("aliases", ()), *item.get("names", ())))


def _plan(wanted: Wanted, manifest: Manifest) -> Plan:
    asked = manifest.plan.resources
    resources = replace(
        asked,
        cpu_count=wanted.cpus or asked.cpu_count,
        memory_mib=wanted.memory_mib or asked.memory_mib,
        disk_mib=wanted.disk_mib or asked.disk_mib,
    )
    isolation = wanted.isolation or manifest.plan.isolation
    return replace(manifest.plan, resources=resources, isolation=isolation)


async def _request(there: Remote, wanted: Wanted, manifest: Manifest) -> tuple[str, str]:
    """Ask for the build: its template's id, and its own."""
    name = wanted.name or manifest.name or manifest.path.resolve().parent.name.lower()
    resources = _plan(wanted, manifest).resources
    body = {
        "name": name,
        "tags": list(wanted.tags),
        "cpuCount": resources.cpu_count,
        "memoryMB": resources.memory_mib,
        "minFreeDiskMb": resources.disk_mib,
    }
    path = "/wardian/house/templates" if wanted.house else "/v3/templates"
    told = (await there.call("POST", path, body=body)).json()
    return told["templateID"], told["buildID"]


async def _upload(there: Remote, template: str, folder: Folder) -> None:
    """Send the archives that the server does not have yet."""
    for digest, path in folder.archives.items():
        told = (await there.call("GET", f"/templates/{quote(template, safe='')}/files/{digest}")).json()
        if told["present"]:
            continue
        size = path.stat().st_size
        note(f"sending {size / 1e6:.1f} MB")
        headers = {"Content-Length": str(size)}
        try:
            answer = await there.http.put(
                told["url"], content=_pieces(path), headers=headers, timeout=UPLOAD_TIMEOUT
            )
        except httpx.TransportError as error:
            raise remote.unreachable(there.address.url, error) from error
        if answer.is_error:
            raise remote.refusal(answer)


async def _pieces(path: Path) -> AsyncIterator[bytes]:
    with path.open("rb") as file:
        while piece := await asyncio.to_thread(file.read, _PIECE):
            yield piece


async def _follow(there: Remote, address: str, *, quiet: bool) -> None:
    """Say what the build says, until it is over. Interrupted, the build is cancelled."""
    seen, pause = 0, POLL_FIRST_S
    with Progress(quiet=quiet) as progress:
        try:
            while True:
                told = (await there.call("GET", f"{address}/status", query={"logsOffset": seen})).json()
                for entry in told["logEntries"]:
                    if entry["level"] != "error":  # that is the reason, which is said at the end
                        progress.line(entry.get("step") or "", entry["message"])
                seen += len(told["logEntries"])
                if told["status"] in OVER and not told["logEntries"]:
                    break
                pause = POLL_FIRST_S if told["logEntries"] else min(1.5 * pause, POLL_MAX_S)
                if told["status"] not in OVER:
                    await asyncio.sleep(pause)
        except asyncio.CancelledError:
            await asyncio.shield(asyncio.ensure_future(there.call("DELETE", f"/wardian{address}")))
            raise
    if told["status"] == "error":
        raise BuildError(told.get("reason", {}).get("message", "the build failed"))


class Progress:
    """The log as it comes; on a terminal, with the step under way below it."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._live = Live(console=err, transient=True, refresh_per_second=8) if err.is_terminal else None
        self._step = ""

    def __enter__(self) -> Progress:
        if self._live is not None and not self._quiet:
            self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._live is not None:
            self._live.stop()

    def line(self, step: str, message: str) -> None:
        if self._quiet:
            return
        style = "bold" if step and step != self._step else "dim"
        words = Text.assemble((f"[{step}] " if step else "", "cyan"), (message, style))
        err.print(words, soft_wrap=True)
        if step != self._step:
            self._step = step
            if self._live is not None:
                self._live.update(Spinner("dots", Text(f"step {step}" if step else "working")))


def _read_lock(path: Path) -> Lock:
    try:
        return locks.decode(path.read_text())
    except FileNotFoundError:
        raise NotFound(f"there is no {path}", hint="build once without --locked to write it") from None
    except UnicodeDecodeError:
        raise Invalid(f"{path} is not a lock: it is not text", code="bad_lock") from None


def _write_lock(path: Path, lock: Lock) -> None:
    draft = path.with_name(f".{path.name}.new")
    draft.write_text(locks.encode(lock))
    draft.rename(path)


def facts_of(outcome: Outcome) -> Mapping[str, Any]:
    """What ``--json`` prints."""
    told = outcome.told
    return {
        "templateID": told["templateID"],
        "buildID": told["buildID"],
        "names": told["names"],
        "image": told["image"],
        "tree": told["tree"],
        "warm": told["snapshotID"] is not None,
        "isolation": told["isolation"],
        "lock": str(outcome.lock),
    }
