"""The bridge's side of the ledger: keys of requests, and answers on their way into it."""

from __future__ import annotations

import base64
import json
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

from wardian.bridge.process.blobs import Blobs
from wardian.model.errors import Conflict

INLINE_MAX = 64 * 1024
"""Of an answer's body that goes into its row; what is longer goes into a file of the bridge's."""
BLOB_MAX = 16 << 20
_KEPT_HEADERS_MAX = 16 * 1024


@dataclass(slots=True)
class Entry:
    """One effect under way. ``key``: its Idempotency-Key, if its grant wants one."""

    id: str
    key: str
    replay: Any = None
    _body: bytearray = field(default_factory=bytearray)
    _whole: bool = True

    def keep(self, data: bytes) -> None:
        """A piece of the answer as the program sees it."""
        if len(self._body) + len(data) > BLOB_MAX:
            self._whole = False
        if self._whole:
            self._body += data

    def recorded(self, status: int, headers: list[tuple[str, str]], blobs: Blobs) -> dict[str, Any]:
        """The answer for the ledger; a long body is in its file, on the disk, when this returns."""
        body, blob, whole = bytes(self._body), None, self._whole
        if len(body) > INLINE_MAX:
            whole = whole and blobs.keep(self.id, body)
            blob, body = self.id if whole else None, b""
        kept = [list(pair) for pair in headers if pair[0] not in ("content-length", "connection", "date")]
        if len(json.dumps(kept)) > _KEPT_HEADERS_MAX:
            kept = [pair for pair in kept if pair[0] == "content-type"]
        return {
            "status": status,
            "headers": kept,
            "body": base64.b64encode(body).decode(),
            "blob": blob,
            "whole": whole,
        }


def digest_of(query: str, content_type: str, body: bytes) -> str:
    """Of a request's query and canonical body: JSON in one spelling, anything else as it is."""
    if content_type.partition(";")[0].strip().lower() == "application/json":
        with suppress(ValueError, RecursionError):
            body = json.dumps(json.loads(body), sort_keys=True, separators=(",", ":")).encode()
    return "sha256:" + sha256(query.encode() + b"\0" + body).hexdigest()


def replayed(told: Any, blobs: Blobs) -> tuple[int, list[tuple[str, str]], bytes]:
    """A recorded answer, as it is given again."""
    body: bytes | None = base64.b64decode(told["body"])
    if told["blob"]:
        body = blobs.read(told["blob"])
    if not told["whole"] or body is None:
        raise Conflict(
            "this was done before, and its answer was too long to be kept", code="effect_done_unrecorded"
        )
    headers = [(name, value) for name, value in told["headers"] if name != "transfer-encoding"]
    return told["status"], [*headers, ("content-length", str(len(body))), ("wardian-replayed", "true")], body
