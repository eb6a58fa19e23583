"""Parts of the protocol that are not here yet. They say so, instead of looking like a wrong address."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from fastapi import APIRouter

from wardian.model.errors import Unsupported

METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE"]


def _refusing(what: str) -> Callable[[], Awaitable[None]]:
    async def refuse() -> None:
        raise Unsupported(f"{what} are not supported", code=f"{what.replace(' ', '_')}_unsupported")

    return refuse


router = APIRouter(include_in_schema=False)
for _path, _what in (
    ("/api-keys", "API keys over HTTP"),
    ("/access-tokens", "access tokens"),
):
    router.add_api_route(_path, _refusing(_what), methods=METHODS)
    router.add_api_route(_path + "/{rest:path}", _refusing(_what), methods=METHODS)
