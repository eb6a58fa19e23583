"""Templates: what ``create`` clones. A root image, bounds, and perhaps a warm snapshot to start from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from wardian.model.resources import Resources


@dataclass(frozen=True, slots=True)
class Template:
    """A template as recorded. ``tenant`` None makes it public: every tenant may use it, none may change it.

    ``root_digest`` (``sha256:<hex>``) names the root image; ``snapshot_id`` the warm image that a sandbox is
    restored from, or None to boot the root image. ``created_at`` is in microseconds since the epoch.
    """

    id: str
    alias: str | None
    tenant: str | None
    root_digest: str
    resources: Resources
    created_at: int
    snapshot_id: str | None = None
    env: Mapping[str, str] = field(default_factory=dict)
