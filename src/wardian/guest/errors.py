"""What a guest refused, as errors. Each carries the Linux ``errno`` that the guest answered with."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Mapping

from wardian.guest.frames import Fields, Violation
from wardian.model.errors import (
    Conflict,
    Forbidden,
    Invalid,
    Kind,
    LimitExceeded,
    NotFound,
    Unavailable,
    WardianError,
)


class Refusal(WardianError):
    """The guest's answer was an error. ``errno`` is its Linux number."""

    kind, code = Kind.GUEST, "guest_error"
    errno: int = 0


class RefusedInvalid(Refusal, Invalid):
    kind, code = Kind.INVALID, Invalid.code


class RefusedNotFound(Refusal, NotFound):
    kind, code = Kind.NOT_FOUND, NotFound.code


class RefusedForbidden(Refusal, Forbidden):
    kind, code = Kind.FORBIDDEN, Forbidden.code


class RefusedConflict(Refusal, Conflict):
    kind, code = Kind.CONFLICT, Conflict.code


class RefusedLimit(Refusal, LimitExceeded):
    kind, code = Kind.LIMIT, LimitExceeded.code


class RefusedUnavailable(Refusal, Unavailable):
    kind, code = Kind.UNAVAILABLE, Unavailable.code


_KNOWN: Mapping[int, tuple[type[Refusal], str]] = {
    errno.ENOENT: (RefusedNotFound, "file_not_found"),
    errno.EEXIST: (RefusedConflict, "already_exists"),
    errno.EISDIR: (RefusedInvalid, "is_a_directory"),
    errno.ENOTDIR: (RefusedInvalid, "not_a_directory"),
    errno.EINVAL: (RefusedInvalid, "invalid_argument"),
    errno.ENAMETOOLONG: (RefusedInvalid, "name_too_long"),
    errno.ELOOP: (RefusedInvalid, "too_many_links"),
    errno.E2BIG: (RefusedInvalid, "request_too_large"),
    errno.ENOEXEC: (RefusedInvalid, "not_executable"),
    errno.EACCES: (RefusedForbidden, "permission_denied"),
    errno.EPERM: (RefusedForbidden, "permission_denied"),
    errno.EROFS: (RefusedForbidden, "read_only"),
    errno.ENOSPC: (RefusedLimit, "no_space"),
    errno.EDQUOT: (RefusedLimit, "no_space"),
    errno.EFBIG: (RefusedLimit, "too_large"),
    errno.EAGAIN: (RefusedLimit, "guest_resources"),
    errno.ENOMEM: (RefusedLimit, "guest_resources"),
    errno.EMFILE: (RefusedLimit, "guest_resources"),
    errno.ENFILE: (RefusedLimit, "guest_resources"),
    errno.ENOTEMPTY: (RefusedConflict, "not_empty"),
    errno.EBUSY: (RefusedConflict, "busy"),
    errno.EXDEV: (RefusedConflict, "cross_device"),
    errno.ETXTBSY: (RefusedConflict, "busy"),
    errno.EPIPE: (RefusedConflict, "closed"),
    errno.ESRCH: (RefusedNotFound, "process_not_found"),
    errno.ECONNREFUSED: (RefusedUnavailable, "port_not_open"),
}

_MESSAGE_MAX = 8192
_ERRNO_MAX = 4095

_PATH_PHRASES: Mapping[int, str] = {
    errno.ENOENT: "path '{}' does not exist",
    errno.EEXIST: "path '{}' already exists",
    errno.EISDIR: "path '{}' is a directory",
    errno.ENOTDIR: "path '{}' is not a directory",
    errno.ENOSPC: "not enough disk space for '{}'",
    errno.EDQUOT: "not enough disk space for '{}'",
}

Refuse = Callable[[int, str], WardianError]
"""Makes the error out of the guest's errno and its message (may be empty)."""


def answer(payload: bytes) -> tuple[int, str]:
    """The errno and the message (hostile text, to be shown only) that REPLY and END carry."""
    number = int.from_bytes(payload[:4], "little")
    if len(payload) < 4 or number > _ERRNO_MAX:
        raise Violation("an answer without a proper errno")
    if not number:
        return 0, ""
    message = Fields(payload[4:]).optional(1) or b""
    return number, message[:_MESSAGE_MAX].decode("utf-8", "replace")


def refused(number: int, message: str) -> Refusal:
    """The guest's errno and words as they are."""
    kind, code = _KNOWN.get(number, (Refusal, "guest_error"))
    error = kind(message or os.strerror(number), code=code)
    error.errno = number
    return error


def at_path(path: str) -> Refuse:
    """For ops on a path.

    The agent says "<absolute path>: <reason>": it knows what a relative path stands for.
    """

    def refuse(number: int, message: str) -> WardianError:
        if number == errno.EINVAL and message.startswith("invalid username"):
            error = refused(number, message)
            error.code = "invalid_username"
            return error
        phrase = _PATH_PHRASES.get(number)
        if phrase is None:
            return refused(number, message or f"{path}: {os.strerror(number)}")
        absolute, colon, _ = message.rpartition(": ")
        return refused(number, phrase.format(absolute if colon and absolute.startswith("/") else path))

    return refuse


def at_exec(cmd: str) -> Refuse:
    """For EXEC: a wrong directory, program or user is the request's fault, whatever errno says so."""

    def refuse(number: int, message: str) -> WardianError:
        code = _KNOWN.get(number, (Refusal, "guest_error"))[1]
        if message.startswith("cwd '"):
            code = "cwd_not_found"
        elif message.startswith("invalid username"):
            code = "invalid_username"
        elif number in (errno.ENOENT, errno.EACCES, errno.ENOEXEC, errno.EISDIR, errno.ENOTDIR):
            code = "not_executable"
            message = message or f"cannot run '{cmd}': {os.strerror(number)}"
        else:
            return refused(number, message)
        error = RefusedInvalid(message, code=code)
        error.errno = number
        return error

    return refuse


def at_port(port: int) -> Refuse:
    def refuse(number: int, _: str) -> WardianError:
        return refused(number, f"port {port} is not open" if number == errno.ECONNREFUSED else "")

    return refuse
