"""``wardian serve``: one server in the foreground, until it is told to stop."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import replace
from types import FrameType

import uvicorn
import uvloop
from rich.console import Console
from rich.text import Text

from wardian.api.http import BoundedHttp
from wardian.app import App, start
from wardian.cli import server_file
from wardian.config import Settings
from wardian.model.errors import Unavailable

KEEP_ALIVE_S = 620
"""Longer than clients keep an idle connection: we must not hang up on a request that is on its way."""

CONNECTIONS_MAX = 16_384
GOODBYE_S = 2
"""How long requests that are under way at a stop may take to end. Streams never would: they are cut off."""

SWITCH_INTERVAL_S = 0.0005
"""How long a thread may compute before the next gets its turn: the loop must not wait 5 ms for a commit."""


def serve(settings: Settings, *, as_json: bool = False) -> None:
    """Serve until SIGINT or SIGTERM. Sandboxes live on; the next server on this data directory takes over.

    With ``as_json`` the greeting is one line of JSON, and all there is on standard output.
    """
    _log_to_stderr()
    _raise_file_limit()
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    uvloop.run(_serve(settings, _greet_program if as_json else _greet_person))


async def _serve(settings: Settings, greet: Callable[[str, App], None]) -> None:
    listener = _listen(settings)
    port = listener.getsockname()[1]
    domain = settings.domain or f"localhost:{port}"
    async with start(replace(settings, port=port, domain=domain)) as app:
        url = f"http://{_in_url(settings.host)}:{port}"
        here = server_file.ServerFile(url=url, key=app.key, pid=os.getpid())
        published = server_file.write(settings.data_dir, here)
        config = uvicorn.Config(
            app.asgi,
            http=BoundedHttp,
            ws="websockets-sansio",
            lifespan="off",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            log_config=None,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=2 * GOODBYE_S,
            limit_concurrency=CONNECTIONS_MAX,
        )
        server = _Server(config)
        stopping = asyncio.create_task(_stop_when_lost(app, server))
        greet(url, app)
        try:
            await server.serve(sockets=[listener])
        finally:
            stopping.cancel()
            published.unlink(missing_ok=True)


async def _stop_when_lost(app: App, server: uvicorn.Server) -> None:
    """Another server holds this node now; every word we said would be wrong."""
    await app.lost.wait()
    server.should_exit = True


class _Server(uvicorn.Server):
    """uvicorn kills itself with the signal that stopped it; we want to end in order instead."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.should_exit = True
        if sig == signal.SIGINT and self._asked_before:
            self.force_exit = True
        self._asked_before = True

    _asked_before = False

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        cutting = asyncio.get_running_loop().call_later(GOODBYE_S, self._cut_off)
        await super().shutdown(sockets)
        cutting.cancel()

    def _cut_off(self) -> None:
        """Hang up, as a client would: whoever serves a stream knows how to end then."""
        for connection in list(self.server_state.connections):
            connection.transport.abort()


def _listen(settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        return socket.create_server((settings.host, settings.port), family=family, backlog=2048)
    except OSError as error:
        why = str(error.strerror).partition(" (while")[0]  # the rest repeats the address
        raise Unavailable(
            f"cannot listen on {settings.host} port {settings.port}: {why}",
            code="cannot_listen",
            hint="another server may be there; choose a port with --port, or 0 for any free one",
        ) from error


def _in_url(host: str) -> str:
    """An address that a client on this machine can use."""
    if host in ("0.0.0.0", ""):
        return "127.0.0.1"
    if host == "::":
        return "[::1]"
    return f"[{host}]" if ":" in host else host


def _greet_program(url: str, app: App) -> None:
    facts = {
        "url": url,
        "key": app.key,
        "domain": app.domain,
        "pid": os.getpid(),
        "isolation": app.host.level,
    }
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


def _greet_person(url: str, app: App) -> None:
    words = Text()
    words.append("Sandboxes at ", style="bold")
    words.append(url, style="bold cyan")
    words.append(f"\n{_summary(app)}\n\n", style="dim")
    words.append("For the E2B SDK, in any language:\n\n")
    for name, value in (("E2B_API_URL", url), ("E2B_SANDBOX_URL", url), ("E2B_API_KEY", app.key)):
        words.append(f"  export {name}={value}\n", style="green")
    words.append(
        "\nCtrl-C stops the server. Sandboxes live on; the next server takes them over.", style="dim"
    )
    # Unframed and unwrapped: these lines are there to be copied.
    Console(highlight=False).print(words, soft_wrap=True)


def _summary(app: App) -> str:
    kept, lost = len(app.taken_over.attached), len(app.taken_over.lost)
    parts = [f"isolation: {app.host.level} ({app.host.version})"]
    if kept:
        parts.append(f"{kept} running {'sandbox' if kept == 1 else 'sandboxes'} taken over")
    if lost:
        parts.append(f"{lost} had died")
    return ", ".join(parts)


def _log_to_stderr() -> None:
    level = os.environ.get("WARDIAN_LOG", "warning").upper()
    logging.basicConfig(
        stream=sys.stderr, level=level, format="%(asctime)s %(levelname)-7s %(name)s: %(message)s", force=True
    )


def _raise_file_limit() -> None:
    """Every sandbox costs a few descriptors, every connection one; the soft limit is of another age."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
