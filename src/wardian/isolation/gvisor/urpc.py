"""A client for urpc, the control protocol of runsc's sentry.

A call is one JSON object ``{"method", "arg"}`` on a unix stream socket, with file descriptors attached to its
first byte; the answer is ``{"success", "err", "result"}``. One call at a time per connection. The sentry is
on the far side of a trust line (a guest may have broken into it), so answers are bounded and parsed strictly.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable, Sequence
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


class Urpc:
    """One connection, made when needed and again after it broke."""

    def __init__(self, connect: Callable[[], socket.socket]) -> None:
        self._connect = connect
        self._sock: socket.socket | None = None
        self._turn = asyncio.Lock()

    async def call(
        self, method: str, arg: object = None, *, fds: Sequence[int] = (), timeout_s: float = CALL_TIMEOUT_S
    ) -> Any:
        """The call's result. Raises :class:`UrpcRefused` or :class:`UrpcBroken`; a cancelled call may still
        run."""
        async with self._turn:
            try:
                async with asyncio.timeout(timeout_s):
                    return await self._exchange(method, arg, fds)
            except UrpcRefused:
                raise
            except TimeoutError:
                self.reset()
                raise UrpcBroken(f"{method} was not answered within {timeout_s:g} s") from None
            except (OSError, ValueError, EOFError) as error:
                self.reset()
                raise UrpcBroken(f"{method}: {error or type(error).__name__}") from error
            except BaseException:
                self.reset()  # the answer may still come; nobody must take it for the next call's
                raise

    async def _exchange(self, method: str, arg: object, fds: Sequence[int]) -> Any:
        loop = asyncio.get_running_loop()
        if self._sock is None:
            self._sock = self._connect()
            self._sock.setblocking(False)
        request = json.dumps({"method": method, "arg": arg}).encode()
        # The buffer of an idle connection has room for the first bytes, so this never blocks.
        sent = socket.send_fds(self._sock, [request], list(fds)) if fds else self._sock.send(request)
        if sent < len(request):
            await loop.sock_sendall(self._sock, request[sent:])
        reply = await self._read_object(loop, self._sock)
        if reply.get("success") is not True:
            raise UrpcRefused(f"{method}: {str(reply.get('err', ''))[:2000]}")
        return reply.get("result")

    @staticmethod
    async def _read_object(loop: asyncio.AbstractEventLoop, sock: socket.socket) -> dict[str, Any]:
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

    def reset(self) -> None:
        """Drop the connection; the next call makes another. (Restore resets the sentry's end.)"""
        if self._sock is not None:
            self._sock.close()
            self._sock = None


__all__ = ["Urpc", "UrpcBroken", "UrpcRefused"]
