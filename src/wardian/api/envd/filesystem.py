"""``filesystem.Filesystem``: look at, move, remove and watch what a sandbox has on its disk."""

from __future__ import annotations

import stat as modes
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from wardian.api.envd.connect import Fields, invalid
from wardian.api.envd.defaults import directory_of
from wardian.api.envd.rpc import Call, Unary
from wardian.guest.guest import Entry

DEPTH_MAX = 1024
_TYPES = {"file": "FILE_TYPE_FILE", "directory": "FILE_TYPE_DIRECTORY"}
_NS = 1_000_000_000


def entry_message(entry: Entry) -> Mapping[str, Any]:
    """An entry as ``EntryInfo``: defaults left out, 64-bit numbers as strings."""
    bits = modes.S_IMODE(entry.mode)
    kind = modes.S_IFDIR if entry.type == "directory" else modes.S_IFREG
    message: dict[str, Any] = {
        "name": entry.name,
        "path": entry.path,
        "permissions": modes.filemode(bits | kind),
        "owner": entry.owner,
        "group": entry.group,
        "modifiedTime": _timestamp(entry.mtime_ns),
    }
    if entry.type in _TYPES:
        message["type"] = _TYPES[entry.type]
    if entry.size:
        message["size"] = str(entry.size)
    if bits:
        message["mode"] = bits
    if entry.symlink_target is not None:
        message["symlinkTarget"] = entry.symlink_target
    if entry.metadata:
        message["metadata"] = dict(entry.metadata)
    return message


def _timestamp(ns: int) -> str:
    """RFC 3339 with nanoseconds; what a guest dates outside the years 1 to 9999 is dated 1970."""
    seconds, rest = divmod(ns, _NS)
    try:
        moment = datetime.fromtimestamp(seconds, UTC)
    except (OverflowError, ValueError, OSError):
        return "1970-01-01T00:00:00Z"
    return f"{moment:%Y-%m-%dT%H:%M:%S}" + (f".{rest:09d}Z" if rest else "Z")


def path_of(call: Call, request: Fields, name: str = "path") -> str:
    """A path as asked; an empty one means the template's directory, or the home directory."""
    return directory_of(request.text(name), call.sandbox) or "~"


async def stat(call: Call, request: Fields) -> Mapping[str, Any]:
    return {"entry": entry_message(await call.guest.stat(path_of(call, request), user=call.user))}


async def make_dir(call: Call, request: Fields) -> Mapping[str, Any]:
    entry = await call.guest.mkdir(path_of(call, request), user=call.user)
    call.record("file.mkdir", path=entry.path, user=call.user)
    return {"entry": entry_message(entry)}


async def move(call: Call, request: Fields) -> Mapping[str, Any]:
    source, destination = path_of(call, request, "source"), path_of(call, request, "destination")
    entry = await call.guest.move(source, destination, user=call.user)
    call.record("file.move", source=source, path=entry.path, user=call.user)
    return {"entry": entry_message(entry)}


async def list_dir(call: Call, request: Fields) -> Mapping[str, Any]:
    depth = min(request.number("depth"), DEPTH_MAX) or 1
    entries = await call.guest.list(path_of(call, request), depth=depth, user=call.user)
    return {"entries": [entry_message(entry) for entry in entries]}


async def remove(call: Call, request: Fields) -> Mapping[str, Any]:
    if not request.text("path"):
        raise invalid("path is required")
    path = path_of(call, request)
    await call.guest.remove(path, user=call.user)
    call.record("file.remove", path=path, user=call.user)
    return {}


UNARY: Mapping[str, Unary] = {
    "/filesystem.Filesystem/Stat": stat,
    "/filesystem.Filesystem/MakeDir": make_dir,
    "/filesystem.Filesystem/Move": move,
    "/filesystem.Filesystem/ListDir": list_dir,
    "/filesystem.Filesystem/Remove": remove,
}
