"""The data plane of one sandbox: its processes and files, byte for byte.

The official SDK decodes output as text and imports for more than a second, so the command line speaks the
protocol itself: Connect's JSON over HTTP/1.1, of which it needs three shapes of call.
"""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import httpx

from wardian.cli.remote import Remote, refusal, unreachable
from wardian.model.errors import Conflict, Kind, WardianError

PORT = 49983
END_OF_STREAM = 0x02
MESSAGE_MAX = 4 << 20
KEEPALIVE_S = 30
SILENCE_MAX_S = 120
"""A stream on which even the keepalives stay away this long is dead."""

KINDS = {
    "invalid_argument": Kind.INVALID,
    "failed_precondition": Kind.CONFLICT,
    "already_exists": Kind.CONFLICT,
    "not_found": Kind.NOT_FOUND,
    "unauthenticated": Kind.UNAUTHENTICATED,
    "permission_denied": Kind.FORBIDDEN,
    "resource_exhausted": Kind.LIMIT,
    "unimplemented": Kind.UNSUPPORTED,
    "unavailable": Kind.UNAVAILABLE,
    "deadline_exceeded": Kind.TIMEOUT,
    "canceled": Kind.TIMEOUT,
}


class Envd:
    """Calls on one running sandbox, as ``user`` (None: the template's default user)."""

    def __init__(self, remote: Remote, sandbox: Mapping[str, Any], user: str | None = None) -> None:
        self._http, self._base = remote.http, remote.address.url
        self._headers = {
            "E2b-Sandbox-Id": str(sandbox["sandboxID"]),
            "E2b-Sandbox-Port": str(PORT),
            "Connect-Protocol-Version": "1",
        }
        if token := sandbox.get("envdAccessToken"):
            self._headers["X-Access-Token"] = str(token)
        self._user = user

    async def call(self, method: str, message: Mapping[str, Any]) -> dict[str, Any]:
        """A unary call such as ``process.Process/Update``."""
        try:
            response = await self._http.post(
                f"{self._base}/{method}",
                json=message,
                headers=self._headers | self._authorization(self._user),
            )
        except httpx.TransportError as error:
            raise unreachable(self._base, error) from error
        if response.is_error:
            raise _rpc_error(response)
        answer: dict[str, Any] = response.json()
        return answer

    @asynccontextmanager
    async def follow(
        self, method: str, message: Mapping[str, Any], *, user: str | None = None
    ) -> AsyncIterator[AsyncIterator[dict[str, Any]]]:
        """A call that is answered by a stream of messages, until the server ends it."""
        headers = {
            **self._headers,
            **self._authorization(user or self._user),
            "Content-Type": "application/connect+json",
            "Keepalive-Ping-Interval": str(KEEPALIVE_S),
        }
        request = self._http.build_request(
            "POST",
            f"{self._base}/{method}",
            content=frame(message),
            headers=headers,
            timeout=httpx.Timeout(SILENCE_MAX_S, connect=5),
        )
        async with self._streamed(request, _rpc_error) as response:
            yield _messages(response)

    @asynccontextmanager
    async def _streamed(
        self, request: httpx.Request, error_of: Callable[[httpx.Response], WardianError]
    ) -> AsyncIterator[httpx.Response]:
        """The answer to ``request``, its body still to be read; a refusal is raised by ``error_of``."""
        try:
            response = await self._http.send(request, stream=True)
        except httpx.TransportError as error:
            raise unreachable(self._base, error) from error
        try:
            if response.is_error:
                await response.aread()
                raise error_of(response)
            yield response
        finally:
            await response.aclose()

    async def feed(self, pid: int, kind: str, chunks: AsyncIterator[bytes]) -> None:
        """Send ``chunks`` to a process as its ``stdin`` or ``pty`` input, in order, over one request."""

        async def frames() -> AsyncIterator[bytes]:
            yield frame({"start": {"process": {"pid": pid}}})
            async for chunk in chunks:
                encoded = base64.b64encode(chunk).decode()
                yield frame({"data": {"input": {kind: encoded}}})

        headers = {
            **self._headers,
            **self._authorization(self._user),
            "Content-Type": "application/connect+json",
        }
        url = f"{self._base}/process.Process/StreamInput"
        try:
            # No deadline: input flows for as long as the command runs.
            response = await self._http.post(url, content=frames(), headers=headers, timeout=None)
        except httpx.TransportError as error:
            raise unreachable(self._base, error) from error
        if response.is_error:
            raise _rpc_error(response)

    @asynccontextmanager
    async def download(self, path: str) -> AsyncIterator[httpx.Response]:
        """A file's bytes, as an answer to be read in pieces."""
        request = self._http.build_request(
            "GET",
            f"{self._base}/files",
            params=self._file_query(path),
            headers=self._headers | {"Accept-Encoding": "identity"},
        )
        async with self._streamed(request, refusal) as response:
            yield response

    async def upload(self, path: str, chunks: AsyncIterator[bytes]) -> str:
        """Write a file and return its absolute path; parents are made, an existing file is replaced."""
        try:
            response = await self._http.post(
                f"{self._base}/files",
                params=self._file_query(path),
                content=chunks,
                headers=self._headers | {"Content-Type": "application/octet-stream"},
                timeout=httpx.Timeout(SILENCE_MAX_S, connect=5),
            )
        except httpx.TransportError as error:
            raise unreachable(self._base, error) from error
        if response.is_error:
            raise refusal(response)
        return str(response.json()[0]["path"])

    def _file_query(self, path: str) -> dict[str, str]:
        return {"path": path, **({"username": self._user} if self._user else {})}

    @staticmethod
    def _authorization(user: str | None) -> dict[str, str]:
        if not user:
            return {}
        return {"Authorization": "Basic " + base64.b64encode(f"{user}:".encode()).decode()}


def frame(message: Mapping[str, Any]) -> bytes:
    """One message of a stream: a flag byte, the length, the JSON."""
    payload = json.dumps(message, separators=(",", ":")).encode()
    return struct.pack(">BI", 0, len(payload)) + payload


async def _messages(response: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    buffer = bytearray()
    try:
        async for piece in response.aiter_raw():
            buffer += piece
            while len(buffer) >= 5:
                flags, size = struct.unpack_from(">BI", buffer)
                if size > MESSAGE_MAX:
                    raise WardianError(f"a message of {size} bytes in the server's stream", code="bad_stream")
                if len(buffer) < 5 + size:
                    break
                message = json.loads(bytes(buffer[5 : 5 + size]))
                del buffer[: 5 + size]
                if flags & END_OF_STREAM:
                    if error := message.get("error"):
                        raise _named_error(error.get("code", "unknown"), error.get("message", ""))
                    return
                yield message
    except httpx.TransportError as error:
        reason = str(error) or type(error).__name__
        raise WardianError(
            f"the connection broke: {reason}",
            code="stream_broken",
            kind=Kind.UNAVAILABLE,
            hint="the sandbox was killed or paused, or the server stopped; see `wardian sandbox logs`",
        ) from error
    raise WardianError("the server's stream ended half-way", code="stream_broken", kind=Kind.UNAVAILABLE)


def _rpc_error(response: httpx.Response) -> WardianError:
    try:
        said = response.json()
        name = said["code"]
    except (ValueError, KeyError, TypeError):
        return refusal(response)
    if not isinstance(name, str):  # the proxy in front of the sandbox speaks of statuses instead
        return refusal(response)
    return _named_error(name, said.get("message", ""))


def _named_error(name: str, message: str) -> WardianError:
    if name == "failed_precondition":
        return Conflict(message, code=name)
    return WardianError(message or name, kind=KINDS.get(name, Kind.INTERNAL), code=name)
