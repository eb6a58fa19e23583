"""The HTTP status of each kind of error, for everybody who answers in HTTP."""

from __future__ import annotations

from collections.abc import Mapping

from wardian.model.errors import Kind

HTTP_STATUS: Mapping[Kind, int] = {
    Kind.INVALID: 400,
    Kind.UNAUTHENTICATED: 401,
    Kind.FORBIDDEN: 403,
    Kind.NOT_FOUND: 404,
    Kind.CONFLICT: 409,
    Kind.LIMIT: 429,
    Kind.UNSUPPORTED: 501,
    Kind.UNAVAILABLE: 503,
    Kind.TIMEOUT: 504,
    Kind.GUEST: 502,
    Kind.INTERNAL: 500,
}
