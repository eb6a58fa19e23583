"""One error root, a handful of kinds.

Every error carries a stable ``code`` (a slug that programs may match), a ``message`` (what happened and why)
and a ``hint`` (what to do next). The *kind* says whose fault it was and is mapped to a protocol status in one
place per protocol: ``wardian.api.errors``.
"""

from __future__ import annotations

from enum import StrEnum


class Kind(StrEnum):
    """Whose fault an error is, in protocol-neutral words."""

    INVALID = "invalid"  # the caller sent something that can never work
    UNAUTHENTICATED = "unauthenticated"  # no key, or one we do not know
    FORBIDDEN = "forbidden"  # known caller, not allowed
    NOT_FOUND = "not_found"  # absent, or another tenant's: the two look alike
    CONFLICT = "conflict"  # legal, but not in the present state
    LIMIT = "limit"  # a quota or rate was hit
    UNSUPPORTED = "unsupported"  # understood, and refused because we do not do it yet
    UNAVAILABLE = "unavailable"  # try again: the host is busy, draining or short of something
    TIMEOUT = "timeout"  # the caller's deadline passed
    GUEST = "guest"  # the code inside misbehaved: malformed frames, dead agent
    INTERNAL = "internal"  # our bug, or the host's


class WardianError(Exception):
    """Root of every error that may reach a caller."""

    kind: Kind = Kind.INTERNAL
    code: str = "internal"

    def __init__(
        self, message: str, *, code: str | None = None, kind: Kind | None = None, hint: str | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or type(self).code
        self.kind = kind or type(self).kind
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class Invalid(WardianError):
    kind, code = Kind.INVALID, "invalid_argument"


class Unauthenticated(WardianError):
    kind, code = Kind.UNAUTHENTICATED, "unauthenticated"


class Forbidden(WardianError):
    kind, code = Kind.FORBIDDEN, "forbidden"


class NotFound(WardianError):
    kind, code = Kind.NOT_FOUND, "not_found"


class Conflict(WardianError):
    kind, code = Kind.CONFLICT, "conflict"


class LimitExceeded(WardianError):
    kind, code = Kind.LIMIT, "limit_exceeded"


class Unsupported(WardianError):
    kind, code = Kind.UNSUPPORTED, "unsupported"


class Unavailable(WardianError):
    kind, code = Kind.UNAVAILABLE, "unavailable"


class DeadlineExceeded(WardianError):
    kind, code = Kind.TIMEOUT, "deadline_exceeded"


class GuestFault(WardianError):
    """The guest broke the protocol or its agent is gone. Nothing it says after this is believed."""

    kind, code = Kind.GUEST, "guest_fault"
