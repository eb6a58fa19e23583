"""What went wrong with a path, in the content API's words: ``code`` is a string here, and 404 is a path's."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping

from starlette.responses import JSONResponse, Response

from wardian.api.errors import http_status, rest_headers
from wardian.model.errors import Conflict, Forbidden, Invalid, LimitExceeded, NotFound, WardianError

_CLASSES: Mapping[int, tuple[type[WardianError], str]] = {
    errno.ENOENT: (NotFound, "path_not_found"),
    errno.ESTALE: (NotFound, "path_not_found"),
    errno.ENOTDIR: (Invalid, "not_a_directory"),
    errno.EISDIR: (Invalid, "is_a_directory"),
    errno.EEXIST: (Conflict, "already_exists"),
    errno.ENOTEMPTY: (Conflict, "not_empty"),
    errno.EPERM: (Forbidden, "not_permitted"),
    errno.ENOSPC: (LimitExceeded, "volume_full"),
    errno.EDQUOT: (LimitExceeded, "volume_full"),
}


def of_path(path: str, error: OSError) -> WardianError:
    """The refusal that an errno on ``path`` is."""
    number = error.errno or errno.EIO
    kind, code = _CLASSES.get(number, (Invalid, errno.errorcode.get(number, "invalid").lower()))
    return kind(f"{path[:256]!r}: {error.strerror or os.strerror(number)}", code=code)


def answer(error: WardianError) -> Response:
    body = {"code": error.code, "message": str(error)}
    return JSONResponse(body, http_status(error), headers=rest_headers(error))
