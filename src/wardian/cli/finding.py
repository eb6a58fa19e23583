"""What an examination of a host says about one thing."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Finding:
    """One requirement. ``level`` is ok, warning (works, but) or missing; ``remedy`` says how to get it."""

    name: str
    level: str
    detail: str
    remedy: str = ""
