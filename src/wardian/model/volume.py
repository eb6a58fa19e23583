"""A volume, and where a sandbox wants it."""

from __future__ import annotations

import posixpath
import re
from dataclasses import dataclass
from itertools import pairwise

from wardian.model.errors import Invalid

NAME_FORM = re.compile(r"[a-zA-Z0-9_-]{1,128}")
MOUNTS_MAX = 16
PATH_BYTES_MAX = 1024

_NOT_BELOW = ("/proc", "/sys", "/dev")


@dataclass(frozen=True, slots=True)
class Volume:
    """A volume's row. Names are unique within a tenant."""

    id: str
    tenant: str
    name: str
    created_at: int


@dataclass(frozen=True, slots=True)
class VolumeMount:
    """A volume at an absolute path inside a sandbox. ``volume_id`` is found when the sandbox is made."""

    name: str
    path: str
    volume_id: str = ""


def checked_volume_name(name: str) -> str:
    """``name`` if a volume may have it. Raises :class:`Invalid`."""
    if not NAME_FORM.fullmatch(name):
        raise Invalid(
            f"a volume's name is up to 128 of letters, digits, '_' and '-', not {name[:64]!r}",
            code="bad_volume_name",
        )
    return name


def checked_mounts(mounts: tuple[VolumeMount, ...]) -> tuple[VolumeMount, ...]:
    """``mounts`` with clean paths. Raises :class:`Invalid` for paths that overlap or are taken."""
    if len(mounts) > MOUNTS_MAX:
        raise Invalid(f"at most {MOUNTS_MAX} volumes can be mounted", code="too_many_mounts")
    clean = tuple(VolumeMount(checked_volume_name(each.name), _checked_path(each.path)) for each in mounts)
    paths = sorted(each.path + "/" for each in clean)
    for upper, lower in pairwise(paths):
        if lower.startswith(upper):
            raise Invalid(
                f"volumes cannot be mounted at or below each other: {lower[:-1]}", code="bad_mount_path"
            )
    return clean


def _checked_path(path: str) -> str:
    clean = posixpath.normpath(path) if path.startswith("/") else ""
    clean = clean.replace("//", "/")
    if (
        clean in ("", "/")
        or "\0" in clean
        or len(clean.encode(errors="replace")) > PATH_BYTES_MAX
        or any(clean == top or clean.startswith(top + "/") for top in _NOT_BELOW)
    ):
        raise Invalid(
            f"a volume cannot be mounted at {path[:64]!r}: it takes an absolute path, not /, "
            "nor anything below /proc, /sys and /dev",
            code="bad_mount_path",
        )
    return clean
