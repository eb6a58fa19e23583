"""A server as the command line sees it: where it is, who we are, and its control plane over HTTP."""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, urlencode

import certifi
import httpx

from wardian.cli import server_file
from wardian.cli.output import Unreachable
from wardian.model.errors import Invalid, Kind, NotFound, Unauthenticated, WardianError

T = TypeVar("T")

TIMEOUT = httpx.Timeout(60, connect=5)
"""Creating and resuming may wait for a machine; a server on this host answers a connect at once."""

KINDS = {
    400: Kind.INVALID,
    401: Kind.UNAUTHENTICATED,
    403: Kind.FORBIDDEN,
    404: Kind.NOT_FOUND,
    409: Kind.CONFLICT,
    422: Kind.INVALID,
    429: Kind.LIMIT,
    501: Kind.UNSUPPORTED,
    502: Kind.UNAVAILABLE,
    503: Kind.UNAVAILABLE,
    504: Kind.TIMEOUT,
}

HINTS = {
    Kind.UNAUTHENTICATED: "set WARDIAN_API_KEY (or E2B_API_KEY), or give --api-key",
    Kind.UNSUPPORTED: "this server does not do that yet",
    Kind.UNAVAILABLE: "try again in a moment; `wardian doctor` says whether this host can run sandboxes",
}


@dataclass(frozen=True, slots=True)
class Address:
    """A server's base URL and the API key for it."""

    url: str
    key: str


def find_server(url: str | None, key: str | None, data_dir: Path | None) -> Address:
    """The server to talk to: options, then WARDIAN_API_URL, then E2B_API_URL, then the local server's file.

    Raises :class:`Unreachable` when none of them says, :class:`Unauthenticated` when there is no key for it.
    """
    env = os.environ
    local = server_file.read(data_dir or server_file.default_data_dir())
    if data_dir is None:
        url = url or env.get("WARDIAN_API_URL") or env.get("E2B_API_URL")
        key = key or env.get("WARDIAN_API_KEY") or env.get("E2B_API_KEY")
    if not url:
        if local is None:
            where = data_dir or server_file.default_data_dir()
            raise Unreachable(
                f"no server is known: none is set, and none has run here in {where}",
                hint="start one with `wardian serve`, or set WARDIAN_API_URL and WARDIAN_API_KEY",
            )
        url = local.url
    if local and local.url.rstrip("/") == url.rstrip("/"):
        key = key or local.key
    if not key:
        raise Unauthenticated(f"no key for {url}", hint=HINTS[Kind.UNAUTHENTICATED])
    return Address(url.rstrip("/"), key)


class Remote:
    """The control plane of one server."""

    def __init__(self, address: Address, http: httpx.AsyncClient) -> None:
        self.address = address
        self.http = http

    async def call(
        self,
        method: str,
        path: str,
        *,
        body: Any = None,
        content: bytes | None = None,
        query: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> httpx.Response:
        """One request; any refusal is raised as the error the server named, with what to do about it."""
        params = {name: value for name, value in (query or {}).items() if value is not None}
        all_headers = {"X-API-KEY": self.address.key, **(headers or {})}
        try:
            response = await self.http.request(
                method,
                self.address.url + path,
                params=params,
                headers=all_headers,
                json=body,
                content=content,
            )
        except httpx.TransportError as error:
            raise unreachable(self.address.url, error) from error
        if response.is_error:
            raise refusal(response)
        return response

    async def sandbox(self, name: str) -> dict[str, Any]:
        """The sandbox whose id is ``name`` or, unambiguously, begins with it."""
        if not name.isalnum():
            raise Invalid(f"{name!r} is not a sandbox id", hint="`wardian sandbox ls` lists them")
        try:
            return await self._detail(name)
        except WardianError as error:
            if error.kind is not Kind.NOT_FOUND:
                raise
        matching = [item["sandboxID"] async for item in self.list() if item["sandboxID"].startswith(name)]
        if len(matching) > 1:
            raise Invalid(f"{name!r} is the beginning of {len(matching)} ids: {', '.join(sorted(matching))}")
        if not matching:
            raise NotFound(f"no sandbox {name!r}", hint="`wardian sandbox ls` lists them")
        return await self._detail(matching[0])

    async def _detail(self, sandbox_id: str) -> dict[str, Any]:
        found: dict[str, Any] = (await self.call("GET", f"/sandboxes/{quote(sandbox_id)}")).json()
        return found

    async def list(self, **query: Any) -> AsyncIterator[dict[str, Any]]:
        """Every sandbox that matches, page by page, as the API lists them."""
        token: str | None = None
        while True:
            page = await self.call("GET", "/v2/sandboxes", query={**query, "nextToken": token})
            for item in page.json():
                yield item
            token = page.headers.get("X-Next-Token")
            if not token:
                return


@asynccontextmanager
async def connect(address: Address) -> AsyncIterator[Remote]:
    """A session with the server. The environment's proxies are not asked: servers are near."""
    # Loading certificates takes longer than most commands.
    verify = _trust() if address.url.startswith("https:") else False
    async with httpx.AsyncClient(timeout=TIMEOUT, trust_env=False, verify=verify) as http:
        yield Remote(address, http)


async def ask(
    server: Address, method: str, path: str, body: Any = None, query: Mapping[str, Any] | None = None
) -> Any:
    """One call in a session of its own; its JSON, or None where it answers nothing."""
    async with connect(server) as there:
        answer = await there.call(method, path, body=body, query=query)
        return answer.json() if answer.content else None


def _trust() -> ssl.SSLContext:
    """Whom to believe over HTTPS: SSL_CERT_FILE, as every other client does, else the public authorities."""
    return ssl.create_default_context(cafile=os.environ.get("SSL_CERT_FILE") or certifi.where())


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run a command's coroutine to its end."""
    return asyncio.run(main)


def metadata_query(labels: Mapping[str, str]) -> str | None:
    """A metadata filter as the protocol wants it: encoded twice before it is encoded as a parameter."""
    return urlencode({quote(name): quote(value) for name, value in labels.items()}) or None


def unreachable(url: str, error: Exception) -> Unreachable:
    """No answer from ``url``."""
    reason = str(error) or type(error).__name__
    hint = "is the server running? start it with `wardian serve`"
    return Unreachable(f"no answer from {url}: {reason}", hint=hint)


def refusal(response: httpx.Response) -> WardianError:
    """The error in an answer of the control or data plane. Whatever it holds, the result is readable."""
    try:
        said = response.json()
    except ValueError:
        said = {}
    if not isinstance(said, dict):
        said = {}
    kind = KINDS.get(response.status_code, Kind.INTERNAL)
    message = str(
        said.get("message") or f"the server answered {response.status_code} {response.reason_phrase}"
    )
    code = said.get("error_code")
    hint = said.get("hint") or HINTS.get(kind)
    return WardianError(message, kind=kind, code=str(code) if code else kind.value, hint=hint)
