"""``wardian serve``: one server in the foreground, until it is told to stop."""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import uvicorn
import uvloop

from wardian.api.edge.certificates import Certificates
from wardian.app import App, start
from wardian.cli import server_file
from wardian.cli.greeting import greet_person, greet_program
from wardian.cli.listeners import Listeners, Secure, Server
from wardian.config import Settings

SWITCH_INTERVAL_S = 0.0005
"""How long a thread may compute before the next gets its turn: the loop must not wait 5 ms for a commit."""

Greet = Callable[[str, App, Secure | None], None]


def serve(settings: Settings, *, as_json: bool = False) -> None:
    """Serve until SIGINT or SIGTERM. Sandboxes live on; the next server on this data directory takes over.

    With ``as_json`` the greeting is one line of JSON, and all there is on standard output.
    """
    _log_to_stderr()
    _raise_file_limit()
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    uvloop.run(_serve(settings, greet_program if as_json else greet_person))


async def _serve(settings: Settings, greet: Greet) -> None:
    listeners = Listeners.open(settings)
    secure, port = listeners.secure, listeners.port
    domain = str(secure.domain) if secure else settings.domain or f"localhost:{port}"
    async with start(replace(settings, port=port, domain=domain)) as app:
        url = f"http://{_in_url(settings.host)}:{port}"
        here = server_file.ServerFile(url=url, key=app.key, pid=os.getpid())
        published = server_file.write(settings.data_dir, here)
        server = Server(app.asgi, listeners)
        stopping = asyncio.create_task(_stop_when_lost(app, server))
        greet(url, app, secure)
        try:
            async with _fresh(secure.certificates if secure else None):
                await server.run_here()
        finally:
            stopping.cancel()
            published.unlink(missing_ok=True)


@asynccontextmanager
async def _fresh(certificates: Certificates | None) -> AsyncIterator[None]:
    """Renew what the HTTPS listener shows, by itself and at SIGHUP."""
    if certificates is None:
        yield
        return
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, certificates.look_now)
    renewing = asyncio.create_task(certificates.keep_fresh())
    try:
        yield
    finally:
        renewing.cancel()


async def _stop_when_lost(app: App, server: uvicorn.Server) -> None:
    """Another server holds this node now; every word we said would be wrong."""
    await app.lost.wait()
    server.should_exit = True


def _in_url(host: str) -> str:
    """An address that a client on this machine can use."""
    if host in ("0.0.0.0", ""):
        return "127.0.0.1"
    if host == "::":
        return "[::1]"
    return f"[{host}]" if ":" in host else host


def _log_to_stderr() -> None:
    level = os.environ.get("WARDIAN_LOG", "warning").upper()
    logging.basicConfig(
        stream=sys.stderr, level=level, format="%(asctime)s %(levelname)-7s %(name)s: %(message)s", force=True
    )


def _raise_file_limit() -> None:
    """Every sandbox costs a few descriptors, every connection one; the soft limit is of another age."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
