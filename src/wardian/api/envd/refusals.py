"""What the sandbox proxy answers when it cannot pass a request on: JSON for programs, a page for people."""

from __future__ import annotations

from collections.abc import Mapping

from wardian.api.envd.connect import encode
from wardian.api.envd.exchange import JSON
from wardian.api.envd.pages import HEADERS, page
from wardian.api.envd.plane import Unreachable
from wardian.api.envd.routing import Target, header

_BROWSERS = ("mozilla", "chrome", "safari", "firefox", "edge", "opera")


def is_browser(headers: Mapping[bytes, bytes]) -> bool:
    """Whether a person is looking: a browser's page load, not a script's call."""
    agent = (header(headers, b"user-agent") or "").lower()
    if not any(name in agent for name in _BROWSERS):
        return False
    if "application/json" in (header(headers, b"accept") or "").lower():
        return False
    if (header(headers, b"sec-fetch-mode") or "").lower() == "cors":
        return False
    return (header(headers, b"x-requested-with") or "").lower() != "xmlhttprequest"


def refusal(
    headers: Mapping[bytes, bytes], target: Target | None, gone: Unreachable
) -> tuple[bytes, list[tuple[bytes, bytes]]]:
    """Body and headers of an answer in the proxy's own name, to a request for ``target``."""
    if is_browser(headers):
        return page(target, gone), list(HEADERS)
    facts: dict[str, object] = {"sandboxId": target.sandbox_id if target else "", "message": gone.message}
    if gone.port is not None:
        facts["port"] = gone.port
    facts["code"] = gone.status
    return encode(facts), [(b"content-type", JSON.encode())]
