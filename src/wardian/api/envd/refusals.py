"""What the sandbox proxy answers when it cannot pass a request on: JSON for programs, a page for people."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

from wardian.api.envd.connect import encode
from wardian.api.envd.exchange import JSON
from wardian.api.envd.plane import NOT_FOUND, PORT_CLOSED
from wardian.api.envd.routing import header

_BROWSERS = ("mozilla", "chrome", "safari", "firefox", "edge", "opera")
_TITLES = {NOT_FOUND: "Sandbox Not Found", PORT_CLOSED: "Closed Port"}
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>body{{font:16px/1.5 system-ui,sans-serif;max-width:34rem;margin:18vh auto;padding:0 1rem;color:#222}}
code{{background:#eee;padding:.1em .3em;border-radius:3px}}</style></head>
<body><h1>{title}</h1><p>{text}</p></body></html>
"""


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
    headers: Mapping[bytes, bytes], status: int, sandbox_id: str, message: str, port: int | None = None
) -> tuple[bytes, list[tuple[bytes, bytes]]]:
    """Body and headers of an answer in the proxy's own name."""
    if is_browser(headers):
        page = _PAGE.format(
            title=_TITLES.get(message, "Request Refused"), text=_text(message, sandbox_id, port)
        )
        return page.encode(), [(b"content-type", b"text/html; charset=utf-8")]
    facts: dict[str, object] = {"sandboxId": sandbox_id, "message": message}
    if port is not None:
        facts["port"] = port
    facts["code"] = status
    return encode(facts), [(b"content-type", JSON.encode())]


def _text(message: str, sandbox_id: str, port: int | None) -> str:
    sandbox = f"sandbox <code>{escape(sandbox_id)}</code>"
    if message == PORT_CLOSED:
        return f"The {sandbox} is running, but there is no service running on port <code>{port}</code>."
    if message == NOT_FOUND:
        return f"There is no running {sandbox}. It may have ended, or be paused."
    return f"{escape(message)} ({sandbox})"
