"""Outgoing connections: dial what a program inside asked for, and carry the bytes."""

from __future__ import annotations

import asyncio
import errno
import os
import socket

from wardian.guest.guest import Tunnel

CONNECT_S = 15.0
_PIECE = 65536


async def relay(address: str, port: int, tunnel: Tunnel) -> None:
    """Connect to a numeric address and join it with ``tunnel`` until both directions have ended.

    Each side is read only as fast as the other takes it. OSError when the connection cannot be made (then
    nothing has been promised to the program inside) or breaks.
    """
    with await _connect(address, port) as remote:
        tunnel.accept()
        pumps = [asyncio.ensure_future(pump(tunnel, remote)) for pump in (_outward, _inward)]
        try:
            await asyncio.gather(*pumps)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)


async def _connect(address: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    remote = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        remote.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        remote.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        async with asyncio.timeout(CONNECT_S):
            await asyncio.get_running_loop().sock_connect(remote, (address, port))
    except TimeoutError:
        remote.close()
        raise OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT)) from None
    except BaseException:
        remote.close()
        raise
    return remote


async def _outward(tunnel: Tunnel, remote: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    while data := await tunnel.read(_PIECE):
        await loop.sock_sendall(remote, data)
    remote.shutdown(socket.SHUT_WR)


async def _inward(tunnel: Tunnel, remote: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    while data := await loop.sock_recv(remote, _PIECE):
        await tunnel.write(data)
    await tunnel.write_eof()


def is_own(address: str) -> bool:
    """Whether an address is one of this host's: what listens there is not meant for sandboxes.

    A socket can be bound to the host's own addresses only.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
        return True
