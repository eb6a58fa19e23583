"""What a request of the content API asks for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

from wardian.model.errors import Invalid

DEPTH_MAX = 100
OWNER_MAX = 2**32 - 2


@dataclass(frozen=True, slots=True)
class Query:
    """The parameters, checked. Absent ones are None."""

    path: str
    depth: int = 1
    uid: int | None = None
    gid: int | None = None
    mode: int | None = None
    force: bool = False

    @classmethod
    def of(cls, given: Mapping[str, str]) -> Self:
        """Raises :class:`Invalid`."""
        if not given.get("path"):
            raise Invalid("path is missing", code="bad_path")
        force = given.get("force", "false").lower()
        if force not in ("true", "false"):
            raise Invalid("force must be true or false", code="bad_parameter")
        return cls(
            given["path"],
            _number(given, "depth", 0, DEPTH_MAX) or 1,
            _number(given, "uid", 0, OWNER_MAX),
            _number(given, "gid", 0, OWNER_MAX),
            _number(given, "mode", 0, 0o7777),
            force == "true",
        )

    def with_owner(self, body: Any) -> Self:
        """The same, with the owner and mode of a JSON body."""
        if not isinstance(body, dict) or not set(body) <= {"uid", "gid", "mode"}:
            raise Invalid("the body takes uid, gid and mode", code="bad_parameter")
        told = {name: str(value) for name, value in body.items() if value is not None}
        if any(not isinstance(value, int | None) or isinstance(value, bool) for value in body.values()):
            raise Invalid("uid, gid and mode are whole numbers", code="bad_parameter")
        return replace(
            self,
            uid=_number(told, "uid", 0, OWNER_MAX),
            gid=_number(told, "gid", 0, OWNER_MAX),
            mode=_number(told, "mode", 0, 0o7777),
        )


def _number(given: Mapping[str, str], name: str, low: int, high: int) -> int | None:
    text = given.get(name)
    if text is None:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) <= 10 and low <= int(text) <= high):
        raise Invalid(f"{name} must be a whole number from {low} to {high}", code="bad_parameter")
    return int(text)
