"""Watching directories: as a stream (``WatchDir``), and in turns (``CreateWatcher`` and its kin)."""

from __future__ import annotations

import errno
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from wardian.api.envd.connect import Fields, RpcError, encode, invalid
from wardian.api.envd.faults import errno_of
from wardian.api.envd.filesystem import entry_message, path_of
from wardian.api.envd.rpc import Call, ServerStream, Stream, Unary
from wardian.guest.guest import Guest, Watch, WatchEvent
from wardian.model.errors import WardianError

WATCHERS_PER_SANDBOX_MAX = 64
_TYPES = {name: f"EVENT_TYPE_{name.upper()}" for name in ("create", "write", "remove", "rename", "chmod")}
_KEEPALIVE = b'{"keepalive":{}}'


@dataclass(frozen=True, slots=True)
class WatchRequest:
    """What to watch, and how. ``base``: the directory's absolute path, if entries are wanted."""

    path: str
    recursive: bool
    user: str
    base: str | None


async def _asked(call: Call, request: Fields) -> WatchRequest:
    path, base = path_of(call, request), None
    if request.flag("include_entry"):
        base = (await call.guest.stat(path, user=call.user)).path
    # allow_network_mounts is about file systems a sandbox does not have: there is nothing to refuse or allow.
    return WatchRequest(path, request.flag("recursive"), call.user, base)


async def _arm(guest: Guest, asked: WatchRequest) -> Watch:
    try:
        return await guest.watch(asked.path, recursive=asked.recursive, user=asked.user)
    except (WardianError, OSError) as error:
        if errno_of(error) == errno.ENOTDIR:
            raise invalid(f"path {asked.path} is not a directory") from error
        raise


async def _message(guest: Guest, asked: WatchRequest, event: WatchEvent) -> Mapping[str, Any]:
    if event.type not in _TYPES:
        raise RpcError(
            "data_loss", "too many changes at once: some events were lost, look at the directory again"
        )
    message: dict[str, Any] = {"name": event.name, "type": _TYPES[event.type]}
    if asked.base is not None:
        try:
            entry = await guest.stat(f"{asked.base.rstrip('/')}/{event.name}", user=asked.user)
        except (WardianError, OSError) as error:
            if errno_of(error) is None:
                raise
        else:
            message["entry"] = entry_message(entry)
    return message


async def watch_dir(call: Call, request: Fields, stream: Stream) -> None:
    """Tell every change until the client has enough, or the call's deadline."""
    asked = await _asked(call, request)
    watch = await _arm(call.guest, asked)
    try:
        await stream.send(b'{"start":{}}')
        async with stream.kept_alive(_KEEPALIVE, call.keepalive_s):
            async for event in watch:
                await stream.send(encode({"filesystem": await _message(call.guest, asked, event)}))
    finally:
        await watch.close()


@dataclass(slots=True)
class _Watcher:
    sandbox_id: str
    asked: WatchRequest
    guest: Guest
    watch: Watch


class Watchers:
    """Watches that are asked for their news from time to time. They do not keep their sandbox awake."""

    def __init__(self) -> None:
        self._watchers: dict[str, _Watcher] = {}

    @property
    def unary(self) -> Mapping[str, Unary]:
        return {
            "/filesystem.Filesystem/CreateWatcher": self.create,
            "/filesystem.Filesystem/GetWatcherEvents": self.events,
            "/filesystem.Filesystem/RemoveWatcher": self.remove,
        }

    async def create(self, call: Call, request: Fields) -> Mapping[str, Any]:
        await self._sweep(call)
        mine = sum(1 for watcher in self._watchers.values() if watcher.sandbox_id == call.sandbox.id)
        if mine >= WATCHERS_PER_SANDBOX_MAX:
            raise RpcError("resource_exhausted", f"a sandbox has at most {WATCHERS_PER_SANDBOX_MAX} watchers")
        asked = await _asked(call, request)
        watch = await _arm(call.guest, asked)
        watcher_id = "w" + secrets.token_hex(10)
        self._watchers[watcher_id] = _Watcher(call.sandbox.id, asked, call.guest, watch)
        return {"watcherId": watcher_id}

    async def events(self, call: Call, request: Fields) -> Mapping[str, Any]:
        watcher = self._find(call, request)
        seen: list[WatchEvent] = []
        if watcher.guest is not call.guest:
            # The sandbox was paused and resumed: its files stood still, only the watch has to be renewed.
            seen += watcher.watch.take()
            watcher.watch = await _arm(call.guest, watcher.asked)
            watcher.guest = call.guest
        await watcher.watch.sync()
        seen += watcher.watch.take()
        return {"events": await self._messages(call.guest, watcher.asked, seen)}

    async def remove(self, call: Call, request: Fields) -> Mapping[str, Any]:
        watcher = self._find(call, request)
        del self._watchers[request.text("watcher_id")]
        await watcher.watch.close()
        return {}

    async def _messages(
        self, guest: Guest, asked: WatchRequest, events: Sequence[WatchEvent]
    ) -> Sequence[Mapping[str, Any]]:
        return [await _message(guest, asked, event) for event in events]

    def _find(self, call: Call, request: Fields) -> _Watcher:
        watcher_id = request.text("watcher_id")
        watcher = self._watchers.get(watcher_id)
        if watcher is None or watcher.sandbox_id != call.sandbox.id:
            raise RpcError("not_found", f"watcher with id {watcher_id} not found")
        return watcher

    async def _sweep(self, call: Call) -> None:
        """Forget the watchers of sandboxes that have ended."""
        for sandbox_id in {watcher.sandbox_id for watcher in self._watchers.values()}:
            if await call.plane.sandboxes.locate(sandbox_id) is None:
                for watcher_id in [k for k, w in self._watchers.items() if w.sandbox_id == sandbox_id]:
                    del self._watchers[watcher_id]


SERVER_STREAMS: Mapping[str, ServerStream] = {"/filesystem.Filesystem/WatchDir": watch_dir}
