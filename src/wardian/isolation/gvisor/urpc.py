"""A client for urpc, the control protocol of runsc's sentry.

A call is one JSON object ``{"method", "arg"}`` on a unix stream socket, with file descriptors attached to its
first byte; the answer is ``{"success", "err", "result"}``. A
connection lasts for one call: a sentry that is about to exit waits 15 s for open ones, and Restore resets
them. The sentry is
on the far side of a trust line (a guest may have broken into it), so answers are bounded and parsed strictly.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Sequence
from typing import Any

from wardian.model.errors import Kind, WardianError

REPLY_MAX = 8 << 20
CALL_TIMEOUT_S = 15.0


class UrpcRefused(WardianError):
    """The sentry answered that the call failed."""

    kind, code = Kind.INTERNAL, "sentry_refused"


class UrpcBroken(WardianError):
    """No usable answer: the sentry is dead, hung, or talks nonsense."""

    kind, code = Kind.UNAVAILABLE, "sentry_unreachable"


async def call(
    sock: socket.socket,
    method: str,
    arg: object = None,
    *,
    fds: Sequence[int] = (),
    timeout_s: float = CALL_TIMEOUT_S,
) -> Any:
    """The result of one call on the connection ``sock``, which is used up.

    Raises :class:`UrpcRefused` or :class:`UrpcBroken`. A cancelled call may still be carried out.
    """
    with sock:
        sock.setblocking(False)
        try:
            async with asyncio.timeout(timeout_s):
                reply = await _exchange(sock, method, arg, fds)
        except TimeoutError:
            raise UrpcBroken(f"{method} was not answered within {timeout_s:g} s") from None
        except (OSError, ValueError, EOFError) as error:
            raise UrpcBroken(f"{method}: {error or type(error).__name__}") from error
    if reply.get("success") is not True:
        raise UrpcRefused(f"{method}: {str(reply.get('err', ''))[:2000]}")
    return reply.get("result")


async def _exchange(sock: socket.socket, method: str, arg: object, fds: Sequence[int]) -> dict[str, Any]:
    loop = asyncio.get_running_loop()
    request = json.dumps({"method": method, "arg": arg}).encode()
    # The buffer of a fresh connection has room for the first bytes, so this never blocks.
    sent = socket.send_fds(sock, [request], list(fds)) if fds else sock.send(request)
    if sent < len(request):
        await loop.sock_sendall(sock, request[sent:])
    data = b""
    while True:
        chunk = await loop.sock_recv(sock, 1 << 16)
        if not chunk:
            raise EOFError("the sentry closed the connection")
        data += chunk
        if len(data) > REPLY_MAX:
            raise ValueError("answer too long")
        if data.rstrip().endswith(b"}"):
            try:
                reply = json.loads(data)
            except ValueError:
                continue  # a brace inside; more is coming
            if not isinstance(reply, dict):
                raise ValueError("answer is not an object")
            return reply


__all__ = ["UrpcBroken", "UrpcRefused", "call"]
