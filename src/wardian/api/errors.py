"""The one place where the kind of an error becomes a status, for each protocol spoken.

Control plane and files answer with an HTTP status; Connect RPCs with one of Connect's codes, which in turn
has an HTTP status of its own for unary calls.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wardian.model.errors import Kind, WardianError
from wardian.model.statuses import HTTP_STATUS

CONNECT_CODE: Mapping[Kind, str] = {
    Kind.INVALID: "invalid_argument",
    Kind.UNAUTHENTICATED: "unauthenticated",
    Kind.FORBIDDEN: "permission_denied",
    Kind.NOT_FOUND: "not_found",
    Kind.CONFLICT: "failed_precondition",
    Kind.LIMIT: "resource_exhausted",
    Kind.UNSUPPORTED: "unimplemented",
    Kind.UNAVAILABLE: "unavailable",
    Kind.TIMEOUT: "deadline_exceeded",
    Kind.GUEST: "unavailable",
    Kind.INTERNAL: "internal",
}

CONNECT_STATUS: Mapping[str, int] = {
    "canceled": 499,
    "unknown": 500,
    "invalid_argument": 400,
    "deadline_exceeded": 504,
    "not_found": 404,
    "already_exists": 409,
    "permission_denied": 403,
    "resource_exhausted": 429,
    "failed_precondition": 400,
    "aborted": 409,
    "out_of_range": 400,
    "unimplemented": 501,
    "internal": 500,
    "unavailable": 503,
    "data_loss": 500,
    "unauthenticated": 401,
}
"""HTTP status of each Connect code in a unary answer."""

HTTP_STATUS_OF_CODE: Mapping[str, int] = {
    "request_too_large": 413,
    "headers_too_large": 431,
    "method_not_allowed": 405,
    "volume_full": 507,
}
"""The few errors for which HTTP has a word of its own, narrower than that of their kind."""

FINAL = frozenset({Kind.UNSUPPORTED, Kind.TIMEOUT, Kind.GUEST, Kind.INTERNAL})
"""Kinds whose status a client would try again by itself, to no use, or doing the thing twice."""


def http_status(error: WardianError) -> int:
    return HTTP_STATUS_OF_CODE.get(error.code, HTTP_STATUS[error.kind])


def rest_headers(error: WardianError) -> dict[str, str]:
    """What tells the SDKs whether to send a refused request of the control plane again."""
    if error.kind in FINAL:
        return {"should-retry": "false"}
    return {"retry-after": "1"} if error.kind is Kind.UNAVAILABLE else {}


def rest_body(error: WardianError) -> dict[str, Any]:
    """An error as the control plane words it; JavaScript clients read the status from here."""
    return {"code": http_status(error), "message": str(error), "error_code": error.code}
