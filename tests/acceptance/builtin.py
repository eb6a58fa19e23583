"""A server that has the built-in templates, which `make builtin` builds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from tests.acceptance.conftest import Server, serve, stop

DATA = Path(__file__).resolve().parents[2] / "build/builtin"
MISSING = "is not built here: run `make builtin`"


@contextmanager
def opened(*options: str) -> Iterator[Server]:
    """The server, and the SDKs pointed at it. Skips where nothing was built."""
    if not (DATA / "wardian.db").exists():
        pytest.skip(f"no built-in template {MISSING}")
    started = serve(DATA, *options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("E2B_API_URL", started.url)
        patch.setenv("E2B_SANDBOX_URL", started.url)
        patch.setenv("E2B_API_KEY", started.key)
        try:
            yield started
        finally:
            stop(started)


@pytest.fixture(scope="module")
def house() -> Iterator[Server]:
    """The server of a module."""
    with opened() as started:
        yield started


def require(server: Server, template: str) -> None:
    """Skip unless ``template`` is the house's, and ready."""
    answer = httpx.get(f"{server.url}/templates", headers={"X-API-KEY": server.key})
    ready = [name for each in answer.json() if each["buildStatus"] == "ready" for name in each["names"]]
    if template not in ready:
        pytest.skip(f"{template} {MISSING}")
