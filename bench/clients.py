"""The two clients that measure: the official SDK, and the least HTTP that does the same."""

from __future__ import annotations

import base64
import http.client
import json
import struct
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from e2b import Sandbox

from bench.peers import BASH
from bench.plain import envelope

TIMEOUT_S = 600


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A server that speaks the E2B protocol, as a user of the SDK names it."""

    url: str
    key: str

    @property
    def options(self) -> dict[str, str]:
        """What every call of the official SDK gets, instead of environment variables."""
        return {"api_key": self.key, "api_url": self.url, "sandbox_url": self.url}

    def create(self, **more: Any) -> Sandbox:
        return Sandbox.create(timeout=TIMEOUT_S, **self.options, **more)  # type: ignore[arg-type]


def elapsed(since: float) -> float:
    """Milliseconds since a ``perf_counter`` reading."""
    return 1000 * (time.perf_counter() - since)


def create_and_run(endpoint: Endpoint) -> float:
    """Through the official SDK: from nothing to the result of a first command (ms)."""
    started = time.perf_counter()
    sandbox = endpoint.create()
    try:
        sandbox.commands.run("true")
        return elapsed(started)
    finally:
        sandbox.kill()


def run_true(sandbox: Sandbox) -> float:
    """One command in a sandbox that is there (ms)."""
    started = time.perf_counter()
    sandbox.commands.run("true")
    return elapsed(started)


class BareClient:
    """One kept connection, the standard library, JSON: the protocol without the SDK's share of the time."""

    def __init__(self, endpoint: Endpoint) -> None:
        at = urlsplit(endpoint.url)
        self._connection = http.client.HTTPConnection(at.hostname or "127.0.0.1", at.port)
        self._key = {"X-API-KEY": endpoint.key, "Content-Type": "application/json"}

    def create_and_run(self) -> float:
        """As the function of the same name (ms)."""
        started = time.perf_counter()
        sandbox = self.create()
        try:
            self.run_true(sandbox)
            return elapsed(started)
        finally:
            self.kill(sandbox)

    def create(self) -> Mapping[str, str]:
        """A sandbox, as the control plane describes it."""
        body = json.dumps({"templateID": "base", "timeout": TIMEOUT_S}).encode()
        described: Mapping[str, str] = json.loads(self._call("POST", "/v2/sandboxes", body, self._key))
        return described

    def kill(self, sandbox: Mapping[str, str]) -> None:
        self._call("DELETE", f"/sandboxes/{sandbox['sandboxID']}", b"", self._key)

    def post(self, path: str, body: bytes) -> Any:
        """What the control plane makes of a body."""
        return json.loads(self._call("POST", path, body, self._key))

    def get(self, path: str) -> bytes:
        """An answer of the control plane."""
        return self._call("GET", path, b"", self._key)

    def stat(self, sandbox: Mapping[str, str], path: str) -> bytes:
        """What is at a path, as the SDK would ask."""
        headers = {**_to_agent(sandbox), "Content-Type": "application/json"}
        return self._call("POST", "/filesystem.Filesystem/Stat", json.dumps({"path": path}).encode(), headers)

    def run_true(self, sandbox: Mapping[str, str]) -> float:
        """One command, as the SDK would send it (ms)."""
        return self.run(sandbox, *BASH, "true")

    def run(self, sandbox: Mapping[str, str], *command: str, user: str = "user") -> float:
        """A command that must end well (ms)."""
        started = time.perf_counter()
        config = {"cmd": command[0], "args": command[1:]}
        name = base64.b64encode(f"{user}:".encode()).decode()
        headers = {
            **_to_agent(sandbox),
            "Content-Type": "application/connect+json",
            "Authorization": f"Basic {name}",
        }
        message = envelope({"process": config, "stdin": False})
        answer = self._call("POST", "/process.Process/Start", message, headers)
        end = next(event["event"]["end"] for event in _messages(answer) if "end" in event.get("event", {}))
        if end.get("exitCode", 0):
            raise RuntimeError(f"the command failed: {end}")
        return elapsed(started)

    def _call(self, method: str, path: str, body: bytes, headers: Mapping[str, str]) -> bytes:
        self._connection.request(method, path, body, dict(headers))
        response = self._connection.getresponse()
        answer = response.read()
        if response.status >= 300:
            raise RuntimeError(f"{method} {path}: {response.status} {answer[:200]!r}")
        return answer


def _to_agent(sandbox: Mapping[str, str]) -> dict[str, str]:
    """The headers that lead to a sandbox's agent."""
    return {
        "Connect-Protocol-Version": "1",
        "E2b-Sandbox-Id": sandbox["sandboxID"],
        "E2b-Sandbox-Port": "49983",
        "X-Access-Token": sandbox.get("envdAccessToken") or "",
    }


def _messages(stream: bytes) -> list[dict[str, Any]]:
    """The JSON messages of a Connect stream."""
    found, at = [], 0
    while at < len(stream):
        (length,) = struct.unpack_from(">I", stream, at + 1)
        found.append(json.loads(stream[at + 5 : at + 5 + length]))
        at += 5 + length
    return found
