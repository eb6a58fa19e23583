"""Positions in a listing, as opaque strings for callers."""

from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode

from wardian.model.errors import Invalid

CURSOR_CHARS_MAX = 256


def encode(at: int, key: str) -> str:
    """The cursor that means "after the item of time ``at`` and id ``key``"."""
    return urlsafe_b64encode(f"{at}__{key}".encode()).decode()


def decode(cursor: str | None) -> tuple[int, str] | None:
    """The position in a cursor. Raises :class:`Invalid` for anything this server did not hand out."""
    if not cursor:
        return None
    try:
        at, key = urlsafe_b64decode(cursor[:CURSOR_CHARS_MAX].encode()).decode().split("__")
        return int(at), key
    except ValueError:
        raise Invalid("Invalid next token", code="bad_cursor") from None
