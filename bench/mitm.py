"""For mitmproxy, which loads it (``-s``): puts a key into requests, and lets answers pass as they come."""

from __future__ import annotations

from typing import Any


def request(flow: Any) -> None:
    flow.request.headers["authorization"] = "Bearer sk-bench-secret"


def responseheaders(flow: Any) -> None:
    flow.response.stream = True
