"""Firecracker's own counters: one JSON object a line. Read for what the host cannot measure itself."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

READ_MAX = 1 << 20


@dataclass(frozen=True, slots=True)
class Counters:
    """Since the machine was started: bytes of its drives, packets of its link, and how often it was held back
    by a rate limiter."""

    read_bytes: int = 0
    write_bytes: int = 0
    throttled: int = 0
    link_in_packets: int = 0
    link_out_packets: int = 0


def read_counters(path: Path) -> Counters:
    """The sum of what was flushed to ``path`` so far: each line counts from the one before. A torn last line,
    and what is not as described, counts as nothing."""
    try:
        with path.open("rb") as file:
            lines = file.read(READ_MAX).split(b"\n")[:-1]
    except OSError:
        return Counters()
    total = Counters()
    for line in lines:
        total = _sum(total, _counters(line))
    return total


def _counters(line: bytes) -> Counters:
    try:
        told = json.loads(line)
    except (ValueError, RecursionError):
        return Counters()
    if not isinstance(told, dict):
        return Counters()
    return Counters(
        read_bytes=_number(told, "block", "read_bytes"),
        write_bytes=_number(told, "block", "write_bytes"),
        throttled=_number(told, "block", "rate_limiter_throttled_events"),
        link_in_packets=_number(told, "vsock", "rx_packets_count"),
        link_out_packets=_number(told, "vsock", "tx_packets_count"),
    )


def _number(told: Mapping[str, Any], group: str, name: str) -> int:
    values = told.get(group)
    value = values.get(name) if isinstance(values, dict) else None
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else 0


def _sum(one: Counters, other: Counters) -> Counters:
    names = Counters.__dataclass_fields__
    return Counters(**{name: getattr(one, name) + getattr(other, name) for name in names})
