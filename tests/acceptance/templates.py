"""Templates as a user builds them on a running server: by `wardian template`, and by the API of templates."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import httpx
from tests.acceptance import commanding
from tests.acceptance.conftest import START_S, Server


def wardian(
    server: Server, *words: str, group: str = "template", key: str | None = None
) -> CompletedProcess[str]:
    """``wardian GROUP WORDS`` with that key, or the server's, to its end."""
    return commanding.wardian(group, "--url", server.url, "--api-key", key or server.key, *words)


def key_of(server: Server, tenant: str, *options: str) -> str:
    """A key for a tenant, who is made if need be."""
    words = ("key", "create", "--json", "--tenant", tenant, "--data", str(server.data))
    done = commanding.wardian(*words, *options)
    assert done.returncode == 0, done.stderr
    return str(json.loads(done.stdout)["key"])


def build(server: Server, directory: Path, *words: str, key: str | None = None) -> dict[str, Any]:
    """Build what is in a directory, and what is told of it; it must succeed."""
    done = wardian(server, "build", str(directory), "--json", *words, key=key)
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def image_of(server: Server, image: str) -> Path:
    """The file of a root image (``sha256:…``) of that server."""
    return server.data / "roots" / f"{image.removeprefix('sha256:')}.erofs"


class Api:
    """The template API, as the SDKs use it."""

    def __init__(self, server: Server, key: str | None = None) -> None:
        headers = {"X-API-KEY": key or server.key}
        self._http = httpx.Client(base_url=server.url, headers=headers, timeout=60)

    def __enter__(self) -> Api:
        return self

    def __exit__(self, *exception: object) -> None:
        self._http.close()

    def call(self, method: str, path: str, body: Any = None, **query: Any) -> httpx.Response:
        return self._http.request(method, path, json=body, params=query or None)

    def get(self, path: str, **query: Any) -> Any:
        """The answer's JSON; it must be one that worked."""
        answer = self.call("GET", path, **query)
        assert answer.is_success, answer.text
        return answer.json()

    def request(self, name: str, *tags: str) -> str:
        """A new build; its address."""
        told = self.call("POST", "/v3/templates", {"name": name, "tags": tags}).json()
        return f"/templates/{told['templateID']}/builds/{told['buildID']}"

    def start(self, name: str, *steps: Any, tags: Sequence[str] = (), **more: Any) -> str:
        """A build upon `base` that has begun; its address."""
        address = self.request(name, *tags)
        started = self.call("POST", f"/v2{address}", {"fromTemplate": "base", "steps": steps, **more})
        assert started.status_code == 202, started.text
        return address

    def built(self, name: str, *steps: Any, tags: Sequence[str] = ()) -> str:
        """A build that is ready; its id."""
        address = self.start(name, *steps, tags=tags)
        told = self.until(address, is_over)
        assert told["status"] == "ready", told
        return address.rpartition("/")[2]

    def until(self, address: str, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The status once it is as wanted."""
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            told: dict[str, Any] = self.call("GET", f"{address}/status").json()
            if wanted(told):
                return told
            time.sleep(0.05)
        raise AssertionError(told)


def says(message: str) -> Callable[[dict[str, Any]], bool]:
    return lambda told: any(entry["message"] == message for entry in told["logEntries"])


def is_over(told: dict[str, Any]) -> bool:
    return told["status"] in ("ready", "error")


def messages(told: dict[str, Any]) -> list[str]:
    return [entry["message"] for entry in told["logEntries"]]
