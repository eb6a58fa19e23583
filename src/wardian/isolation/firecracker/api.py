"""Talking to one Firecracker: HTTP over its unix socket. What it answers is bounded; refusals are told."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Mapping
from typing import Any

import httpx

from wardian.isolation.firecracker.jail import Jail, Names
from wardian.isolation.firecracker.requests import Request
from wardian.model.errors import Kind, WardianError

ANSWER_MAX = 1 << 20
TIMEOUT_S = 30.0
CAPTURE_TIMEOUT_S = 300.0
_LOOK_S = 0.002


class FirecrackerRefused(WardianError):
    """Firecracker says no to a request; the message is its own."""

    kind, code = Kind.UNAVAILABLE, "firecracker_refused"


class FirecrackerBroken(WardianError):
    """Firecracker does not answer, or not as its description says."""

    kind, code = Kind.UNAVAILABLE, "firecracker_broken"


class Api:
    """The API of the Firecracker in ``jail``. A connection lasts as long as a call."""

    def __init__(self, jail: Jail) -> None:
        self._jail = jail

    async def send(self, requests: Iterable[Request], *, timeout_s: float = TIMEOUT_S) -> None:
        """Send them one after the other; the first that is refused is raised, and the rest is not sent."""
        with self._jail.short(Names.API) as path:
            transport = httpx.AsyncHTTPTransport(uds=path)
            async with httpx.AsyncClient(
                transport=transport, base_url="http://localhost", timeout=timeout_s, trust_env=False
            ) as http:
                for request in requests:
                    await _call(http, request)

    async def ask(self, request: Request) -> Mapping[str, Any]:
        """The answer to one request that has one."""
        with self._jail.short(Names.API) as path:
            transport = httpx.AsyncHTTPTransport(uds=path)
            async with httpx.AsyncClient(
                transport=transport, base_url="http://localhost", timeout=TIMEOUT_S, trust_env=False
            ) as http:
                told = await _call(http, request)
        if not isinstance(told, dict):
            raise FirecrackerBroken(f"{request.method} {request.path} was answered with no object")
        return told

    async def up(self, timeout_s: float) -> None:
        """Return when it listens. Raises ``TimeoutError``."""
        async with asyncio.timeout(timeout_s):
            while True:
                try:
                    self._jail.connect(Names.API).close()
                except OSError:
                    await asyncio.sleep(_LOOK_S)  # there is no event for a socket that is not there yet
                else:
                    return


async def _call(http: httpx.AsyncClient, request: Request) -> Any:
    what = f"{request.method} {request.path}"
    try:
        async with http.stream(request.method, request.path, json=request.body) as answer:
            raw = b""
            async for piece in answer.aiter_bytes():
                raw += piece
                if len(raw) > ANSWER_MAX:
                    raise FirecrackerBroken(f"{what} was answered with more than {ANSWER_MAX} bytes")
    except httpx.HTTPError as error:
        raise FirecrackerBroken(f"{what} was not answered: {error or type(error).__name__}") from error
    if answer.status_code == 204:
        return None
    told = _parsed(raw, what)
    if answer.status_code == 200:
        return told
    fault = told.get("fault_message") if isinstance(told, dict) else None
    if answer.status_code == 400 and isinstance(fault, str):
        raise FirecrackerRefused(f"Firecracker refused {what}: {fault[:1000]}")
    raise FirecrackerBroken(f"{what} was answered with {answer.status_code}: {raw[:200]!r}")


def _parsed(raw: bytes, what: str) -> Any:
    try:
        return json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise FirecrackerBroken(f"{what} was not answered in JSON: {raw[:200]!r}") from error
