"""A server that has the built-in templates, which `make builtin` builds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from tests.acceptance.conftest import Server, serve, stop

DATA = Path(__file__).resolve().parents[2] / "build/builtin"


@pytest.fixture(scope="module")
def house() -> Iterator[Server]:
    """The server, and the SDKs pointed at it. Skips where nothing was built."""
    if not DATA.exists():
        pytest.skip("the built-in templates are not built here: run `make builtin`")
    started = serve(DATA)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("E2B_API_URL", started.url)
        patch.setenv("E2B_SANDBOX_URL", started.url)
        patch.setenv("E2B_API_KEY", started.key)
        try:
            yield started
        finally:
            stop(started)


def require(server: Server, template: str) -> None:
    """Skip unless ``template`` is ready on the server."""
    answer = httpx.get(f"{server.url}/templates", headers={"X-API-KEY": server.key})
    ready = [name for item in answer.json() if item["buildStatus"] == "ready" for name in item["aliases"]]
    if template not in ready:
        pytest.skip(f"{template} is not built here: run `make builtin`")
