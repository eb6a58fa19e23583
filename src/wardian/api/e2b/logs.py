"""A sandbox's events, told as the log entries that clients know."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import AsyncIterator, Mapping
from itertools import islice
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Response
from fastapi.responses import JSONResponse

from wardian.api.e2b.answers import timestamp
from wardian.api.e2b.context import ControlPlane, Plane, SandboxId, Tenant

router = APIRouter()

EVENTS_PER_READ = 1000
ENTRIES_MAX = 1000
MILLISECONDS_MAX = 2**50
LEVELS = ("debug", "info", "warn", "error")

_ERRORS = ("failed", "lost", "fault")
_WARNINGS = ("refused", "oom_kill", "fork_guard", "retry", "log_full")
_FRAME = frozenset({"at", "type", "prev"})

Limit = Annotated[int, Query(ge=1, le=ENTRIES_MAX)]
Milliseconds = Annotated[int, Query(ge=0, le=MILLISECONDS_MAX)]
Level = Literal["debug", "info", "warn", "error"]


@router.get("/sandboxes/{sandbox_id}/logs")
async def logs_v1(
    plane: Plane, tenant: Tenant, sandbox_id: SandboxId, start: Milliseconds = 0, limit: Limit = ENTRIES_MAX
) -> Response:
    """The entries since ``start``, structured, and as lines of JSON for the command line tool."""
    told = []
    async for entry in _entries(plane, tenant, sandbox_id):
        if entry["at"] >= start * 1000:
            told.append(_told(entry))
        if len(told) == limit:
            break
    lines = [{"timestamp": entry["timestamp"], "line": _line(entry)} for entry in told]
    return JSONResponse({"logs": lines, "logEntries": told})


@router.get("/v2/sandboxes/{sandbox_id}/logs")
async def logs(
    plane: Plane,
    tenant: Tenant,
    sandbox_id: SandboxId,
    *,
    cursor: Milliseconds | None = None,
    limit: Limit = ENTRIES_MAX,
    direction: Literal["forward", "backward"] = "forward",
    level: Level = "debug",
    search: Annotated[str, Query(max_length=256)] = "",
) -> Response:
    """Entries from ``cursor`` (milliseconds) on, oldest first; backward: up to it, newest first."""
    backward = direction == "backward"
    found: deque[dict[str, Any]] = deque(maxlen=limit if backward else None)
    async for entry in _entries(plane, tenant, sandbox_id):
        if cursor is not None and (entry["at"] > cursor * 1000 if backward else entry["at"] < cursor * 1000):
            continue
        if LEVELS.index(entry["level"]) < LEVELS.index(level) or search not in entry["message"]:
            continue
        found.append(entry)
        if not backward and len(found) == limit:
            break
    told = [_told(entry) for entry in found]
    return JSONResponse({"logs": told[::-1] if backward else told})


async def _entries(plane: ControlPlane, tenant: str, sandbox_id: str) -> AsyncIterator[dict[str, Any]]:
    after = 0
    while True:
        events = await plane.sandboxes.events(tenant, sandbox_id, after_seq=after, limit=EVENTS_PER_READ)
        for event in events:
            yield _entry(event)
        if len(events) < EVENTS_PER_READ:
            return
        after = int(events[-1]["seq"])


def _entry(event: Mapping[str, Any]) -> dict[str, Any]:
    kind = str(event["type"])
    facts = {key: _text(value) for key, value in event.items() if key not in _FRAME}
    words = kind.replace("_", " ")
    shown = ", ".join(f"{key}={value}" for key, value in islice(facts.items(), 8) if key != "seq")
    return {
        "at": int(event["at"]),
        "level": _level(kind),
        "message": f"{words}: {shown}" if shown else words,
        "fields": {"event": kind, **facts},
    }


def _level(kind: str) -> Level:
    if kind.endswith(_ERRORS):
        return "error"
    return "warn" if kind.endswith(_WARNINGS) else "info"


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _told(entry: Mapping[str, Any]) -> dict[str, Any]:
    """``SandboxLogEntry``."""
    return {
        "timestamp": timestamp(entry["at"]),
        "level": entry["level"],
        "message": entry["message"],
        "fields": entry["fields"],
    }


def _line(told: Mapping[str, Any]) -> str:
    fields = {key: value for key, value in told["fields"].items() if key not in told}
    head = {key: told[key] for key in ("timestamp", "level", "message")}
    return json.dumps(head | {"logger": "wardian"} | fields, ensure_ascii=False)
