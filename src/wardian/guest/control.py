"""The link's own messages: ATTACH and HELLO, and notices. No I/O."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping, Sequence

from wardian.guest.frames import VERSION, Fields, Violation, field, number, shown
from wardian.guest.pace import Bucket
from wardian.guest.values import Identity
from wardian.model.errors import Invalid

_ENTROPY_SIZE = 32
_HOSTNAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,62}[A-Za-z0-9])?")
_HEX32 = re.compile(r"[0-9a-f]{32}")
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_NOTICES = frozenset({"oom_kill", "fork_guard"})
_NOTICES_BURST, _NOTICES_PER_S = 32.0, 1.0


def attach_fields(token: int, identity: Identity | None) -> bytes:
    """The payload of ATTACH. With an identity come fresh entropy and the time of day."""
    parts = [number(1, VERSION, 2), number(2, token, 8)]
    if identity is not None:
        parts += _identity_fields(identity)
    return b"".join(parts)


def _identity_fields(identity: Identity) -> list[bytes]:
    for value, shape, what in (
        (identity.hostname, _HOSTNAME, "hostname"),
        (identity.machine_id, _HEX32, "machine id"),
        (identity.boot_id, _UUID, "boot id"),
    ):
        if value is not None and not shape.fullmatch(value):
            raise Invalid(f"{value!r} is no {what}", code="invalid_identity")
    parts = [
        field(3, identity.hostname.encode()),
        field(4, identity.machine_id.encode()),
        field(5, os.urandom(_ENTROPY_SIZE)),
        number(6, time.time_ns(), 8),
    ]
    if identity.boot_id is not None:
        parts.append(field(7, identity.boot_id.encode()))
    for path, (mode, content) in identity.files.items():
        if "\0" in path or not path.startswith("/"):
            raise Invalid(f"{path!r} is no path for an identity file", code="invalid_identity")
        parts.append(field(8, f"{path}\0{mode & 0o7777:o}\0".encode() + content))
    return parts


def parse_hello(parts: Sequence[bytes]) -> tuple[int, str | None, list[bytes]]:
    """The token of the ATTACH it answers, why the identity was not taken (or None), and the processes."""
    first = Fields(parts[0])
    version = first.integer(1, 2)
    if version != VERSION:
        raise Violation(f"the agent speaks version {version}, not {VERSION}")
    listed = first.many(4)
    for part in parts[1:]:
        listed += Fields(part).many(4)
    failure = first.optional(9)
    return first.integer(2, 8), None if failure is None else shown(failure), listed


class Notices:
    """Reads notices, and lets through no more than a few: each becomes a record somewhere."""

    def __init__(self) -> None:
        self._bucket = Bucket(_NOTICES_BURST, _NOTICES_PER_S)

    def take(self, payload: bytes) -> tuple[str, Mapping[str, object]] | None:
        """Kind and facts; None for one too many. All of it is what the guest claims."""
        fields = Fields(payload)
        kind = fields.text(1, limit=64)
        if kind not in _NOTICES:
            raise Violation("a notice of no known kind")
        facts: dict[str, object] = {}
        for tag, name, size in ((2, "pid", 4), (4, "bytes", 8), (5, "killed", 4)):
            if fields.optional(tag) is not None:
                facts[name] = fields.integer(tag, size)
        if fields.optional(3) is not None:
            facts["name"] = fields.text(3, limit=256)
        return (kind, facts) if self._bucket.take() else None
