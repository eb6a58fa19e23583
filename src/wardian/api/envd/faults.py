"""What goes wrong inside a guest, in the words of the two halves of envd: Connect codes and HTTP statuses."""

from __future__ import annotations

import errno
from collections.abc import Mapping

from wardian.api.envd.connect import RpcError
from wardian.api.errors import CONNECT_CODE
from wardian.model.errors import Kind, WardianError
from wardian.model.statuses import HTTP_STATUS

_CODES: Mapping[int, str] = {
    errno.ENOENT: "not_found",
    errno.ENOTDIR: "invalid_argument",
    errno.EISDIR: "invalid_argument",
    errno.EEXIST: "already_exists",
    errno.EINVAL: "invalid_argument",
    errno.ENAMETOOLONG: "invalid_argument",
    errno.ELOOP: "invalid_argument",
    errno.ENOTEMPTY: "failed_precondition",
    errno.EACCES: "permission_denied",
    errno.EPERM: "permission_denied",
    errno.EROFS: "permission_denied",
    errno.ESRCH: "not_found",
    errno.ENOSPC: "resource_exhausted",
    errno.EDQUOT: "resource_exhausted",
    errno.EAGAIN: "resource_exhausted",
    errno.ENOMEM: "resource_exhausted",
    errno.EMFILE: "resource_exhausted",
    errno.EPIPE: "failed_precondition",
    errno.ETIMEDOUT: "deadline_exceeded",
}

_STATUSES: Mapping[int, int] = {
    errno.ENOENT: 404,
    errno.ENOTDIR: 400,
    errno.EISDIR: 400,
    errno.EEXIST: 409,
    errno.EINVAL: 400,
    errno.ENAMETOOLONG: 400,
    errno.ELOOP: 400,
    errno.EACCES: 403,
    errno.EPERM: 403,
    errno.EROFS: 403,
    errno.ENOSPC: 507,
    errno.EDQUOT: 507,
}

_BAD_USER = "invalid username"


def errno_of(error: BaseException) -> int | None:
    """The Linux error number a guest answered with, if that is what this is."""
    number = getattr(error, "errno", None)
    return number if isinstance(number, int) else None


def is_lost(error: BaseException) -> bool:
    """Whether the guest went away rather than answered."""
    if isinstance(error, WardianError):
        return errno_of(error) is None and error.kind in (Kind.GUEST, Kind.UNAVAILABLE)
    return isinstance(error, ConnectionError)


def text_of(error: BaseException) -> str:
    return error.message if isinstance(error, WardianError) else str(error)


def is_bad_user(error: BaseException) -> bool:
    return errno_of(error) == errno.EINVAL and _BAD_USER in text_of(error)


def rpc_error(error: WardianError | OSError) -> RpcError:
    """A guest's refusal as a Connect error."""
    if is_bad_user(error):
        return RpcError("unauthenticated", text_of(error))
    number = errno_of(error)
    if number is not None:
        return RpcError(_CODES.get(number, "internal"), text_of(error))
    kind = error.kind if isinstance(error, WardianError) else Kind.INTERNAL
    return RpcError(CONNECT_CODE[kind], text_of(error))


def http_error(error: WardianError | OSError, user: str | None) -> tuple[int, str]:
    """A guest's refusal as ``/files`` words it: status and message."""
    if is_bad_user(error):
        return 401, f"error looking up user '{user}': user: unknown user {user}"
    number = errno_of(error)
    if number is not None:
        return _STATUSES.get(number, 500), text_of(error)
    kind = error.kind if isinstance(error, WardianError) else Kind.INTERNAL
    return HTTP_STATUS[kind], text_of(error)
