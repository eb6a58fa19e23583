"""The pages that people see in a browser when a sandbox's port cannot answer: what happened, and what to do.

A page is whole in itself: no script, nothing loaded from anywhere, and a policy that says so. Every word that
comes from a request is escaped.
"""

from __future__ import annotations

from dataclasses import dataclass
from html import escape

from wardian.api.envd.plane import NOT_FOUND, PORT_CLOSED, TRANSITIONING, Unreachable
from wardian.api.envd.routing import Target

HEADERS = (
    (b"content-type", b"text/html; charset=utf-8"),
    (b"content-security-policy", b"default-src 'none'; style-src 'unsafe-inline'; frame-ancestors *"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
)

FORBIDDEN = 403

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark;
  --sea: #e8f0f2; --land: #fff; --ink: #1d2b30; --dim: #5b6f76; --line: #cfdcdf }}
@media (prefers-color-scheme: dark) {{
  :root {{ --sea: #0f181b; --land: #172327; --ink: #e3edf0; --dim: #8fa5ac; --line: #2a3a40 }}
}}
body {{ margin: 0; min-height: 100vh; display: grid; place-items: center; background: var(--sea);
  color: var(--ink); font: 16px/1.55 system-ui, sans-serif }}
main {{ box-sizing: border-box; width: min(34rem, 92vw); padding: 2.2rem 2.4rem; background: var(--land);
  border: 1px solid var(--line); border-radius: 14px }}
svg {{ display: block; margin-bottom: 1rem }}
h1 {{ margin: 0 0 .5rem; font-size: 1.45rem; line-height: 1.25 }}
p {{ margin: .5rem 0 }}
dl {{ display: grid; grid-template-columns: max-content 1fr; gap: .25rem 1.2rem; margin: 1.4rem 0 0;
  padding-top: 1.1rem; border-top: 1px solid var(--line); font-size: .9rem }}
dt {{ color: var(--dim) }}
dd {{ margin: 0; overflow-wrap: anywhere }}
code, dd {{ font-family: ui-monospace, monospace; font-size: .92em }}
.advice {{ color: var(--dim) }}
</style>
</head>
<body>
<main>
<svg width="56" height="34" viewBox="0 0 56 34" aria-hidden="true" fill="none" stroke="currentColor"
 stroke-width="2" stroke-linecap="round"><path d="M12 22c4-12 28-12 32 0"/><path d="M28 13V4l8 3-8 3"/>
<path d="M3 25c4-3 8-3 12 0s8 3 12 0 8-3 12 0 8 3 12 0"/>
<path d="M11 32c4-3 8-3 12 0s8 3 12 0 6-2 9-1"/></svg>
<h1>{title}</h1>
<p>{what}</p>
<p class="advice">{advice}</p>
<dl>{facts}</dl>
</main>
</body>
</html>
"""


@dataclass(frozen=True, slots=True)
class Words:
    """What a page says, as HTML."""

    title: str
    what: str
    advice: str


_CLOSED = Words(
    "Closed Port Error",
    "The sandbox is running, but there is no service running on this port.",
    "Start one that listens on it, on any address, and load this page again.",
)
_GONE = Words(
    "Sandbox Not Found",
    "There is no sandbox here that could answer. It may have ended, or there never was one of this name.",
    "Look at the address, or make a new sandbox.",
)
_PAUSED = Words(
    "Sandbox Paused",
    "The sandbox is paused. Everything in it is kept, but nothing runs.",
    "Resume it with <code>Sandbox.connect</code> or <code>wardian sandbox resume</code>, "
    "and load this page again.",
)
_MOVING = Words(
    "Just a Moment",
    "The sandbox is being paused or resumed.",
    "Load this page again in a few seconds.",
)
_LOCKED = Words(
    "Token Needed",
    "The ports of this sandbox are not public: it wants the traffic access token with every request.",
    "Send it in the header <code>e2b-traffic-access-token</code>. Whoever made the sandbox has it, as "
    "<code>traffic_access_token</code>.",
)


def page(target: Target | None, gone: Unreachable) -> bytes:
    """The page for one refusal of the proxy."""
    words = _words(gone)
    facts: dict[str, object] = {"status": gone.status}
    if target is not None:
        facts = {"sandbox": target.sandbox_id, "port": target.port} | facts
    return _PAGE.format(
        title=words.title,
        what=words.what,
        advice=words.advice,
        facts="".join(f"<dt>{name}</dt><dd>{escape(str(value))}</dd>" for name, value in facts.items()),
    ).encode()


def _words(gone: Unreachable) -> Words:
    if gone.paused:
        return _PAUSED
    known = {PORT_CLOSED: _CLOSED, NOT_FOUND: _GONE, TRANSITIONING: _MOVING}
    if gone.message in known:
        return known[gone.message]
    if gone.status == FORBIDDEN:
        return _LOCKED
    said = escape(gone.message)
    return Words("No Answer", f"{said[:1].upper()}{said[1:]}.", "Load this page again in a moment.")
