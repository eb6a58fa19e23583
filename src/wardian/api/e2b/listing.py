"""The query string of a listing, decoded."""

from __future__ import annotations

from datetime import UTC, datetime
from urllib.parse import parse_qsl, unquote

from wardian.api.e2b.body import template_reference
from wardian.model.errors import Invalid
from wardian.sandboxes.service import ListQuery

LIMIT_MAX = 100
CURSOR_CHARS_MAX = 512
PAIRS_MAX = 64
STATES = frozenset({"running", "paused"})


def list_query(
    *,
    states: frozenset[str],
    metadata: str | None,
    template: str | None = None,
    started_after: str | None = None,
    order: str | None = None,
    limit: int | None = None,
    cursor: str | None = None,
) -> ListQuery:
    """The query as asked for. Raises :class:`Invalid`."""
    if order not in (None, "", "asc", "desc"):
        raise Invalid(f"order must be asc or desc, not {order[:16]!r}", code="bad_order")
    return ListQuery(
        states=states,
        metadata=metadata_of(metadata or ""),
        template=template_reference(template) if template else None,
        started_after_us=_instant(started_after) if started_after else None,
        ascending=order == "asc",
        limit=page_size(limit),
        cursor=checked_cursor(cursor),
    )


def page_size(limit: int | None) -> int:
    if limit is None:
        return LIMIT_MAX
    if not 1 <= limit <= LIMIT_MAX:
        raise Invalid(f"limit must be between 1 and {LIMIT_MAX}", code="bad_limit")
    return limit


def checked_cursor(cursor: str | None) -> str | None:
    """A cursor that may be one of ours; whoever made it checks what it says."""
    if not cursor:
        return None
    if len(cursor) > CURSOR_CHARS_MAX:
        raise Invalid("Invalid next token", code="bad_cursor")
    return cursor


def states_of(given: list[str] | None) -> frozenset[str]:
    """States, comma-separated, repeated, or both. None asked for: all of them."""
    asked = frozenset(state for part in given or () for state in part.split(",") if state)
    if unknown := asked - STATES:
        raise Invalid(f"unknown state {min(unknown)[:32]!r}: running or paused", code="bad_state")
    return asked or STATES


def metadata_of(text: str) -> dict[str, str]:
    """The pairs of a metadata filter, encoded twice by the clients in a parameter that is encoded already."""
    try:
        pairs = parse_qsl(text, keep_blank_values=True, strict_parsing=bool(text), max_num_fields=PAIRS_MAX)
    except ValueError as error:
        raise Invalid(f"invalid metadata filter: {error}", code="bad_metadata_filter") from None
    return {unquote(key): unquote(value) for key, value in pairs}


def _instant(text: str) -> int:
    """Microseconds since the epoch of an RFC 3339 time, cut to whole seconds: the filter is that coarse."""
    try:
        # A plus sign that was not encoded arrives as a space.
        instant = datetime.fromisoformat(text.strip().replace(" ", "+") if "T" in text else text)
        return int((instant if instant.tzinfo else instant.replace(tzinfo=UTC)).timestamp()) * 1_000_000
    except (ValueError, OverflowError):
        raise Invalid(f"startedAfter is not an RFC 3339 time: {text[:64]!r}", code="bad_time") from None
