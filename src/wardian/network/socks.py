"""Outgoing connections through a tenant's SOCKS5 proxy (RFC 1928, 1929), perhaps inside TLS.

It fails closed: a proxy that cannot be reached, does not speak SOCKS5 or says no ends the connection.
"""

from __future__ import annotations

import asyncio
import errno
import os
import ssl

from socksio import ProtocolError, socks5

from wardian.model.egress import EgressProxy
from wardian.network.outbound import CONNECT_S, Remote, TlsRemote, dial

_ADDRESS_SIZES = {1: 4, 4: 16}
_NAME = 3


def tls_context(proxy: EgressProxy) -> ssl.SSLContext:
    """How the proxy is verified. ``ssl.SSLError`` when its CA certificates are none."""
    context = ssl.create_default_context(cadata=proxy.ca_cert)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


async def dial_through(
    proxy: EgressProxy, password: str | None, proxy_address: str, host: str, port: int
) -> Remote:
    """Connect to ``host`` (a name, or an address) by way of the proxy, which is at ``proxy_address``.

    OSError when the proxy, or what lies behind it, cannot be reached.
    """
    plain = await dial(proxy_address, proxy.port)
    remote: Remote = plain
    try:
        async with asyncio.timeout(CONNECT_S):
            if proxy.tls:
                remote = await TlsRemote.over(plain, tls_context(proxy), proxy.server_name or proxy.host)
            await _shake_hands(remote, proxy.username, password, host, port)
    except TimeoutError:
        remote.close()
        raise OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT)) from None
    except (ProtocolError, ValueError):
        remote.close()
        raise OSError(errno.EPROTO, os.strerror(errno.EPROTO)) from None
    except BaseException:
        remote.close()
        raise
    return remote


async def _shake_hands(
    remote: Remote, username: str | None, password: str | None, host: str, port: int
) -> None:
    connection = socks5.SOCKS5Connection()
    with_password = socks5.SOCKS5AuthMethod.USERNAME_PASSWORD
    methods = [socks5.SOCKS5AuthMethod.NO_AUTH_REQUIRED, *([] if username is None else [with_password])]
    connection.send(socks5.SOCKS5AuthMethodsRequest(methods))
    await remote.write(connection.data_to_send())
    chosen = connection.receive_data(await _exactly(remote, 2))
    if not isinstance(chosen, socks5.SOCKS5AuthReply) or chosen.method not in methods:
        raise ProtocolError("no common method")
    if username is not None and chosen.method is with_password:
        connection.send(socks5.SOCKS5UsernamePasswordRequest(username.encode(), (password or "").encode()))
        await remote.write(connection.data_to_send())
        reply = connection.receive_data(await _exactly(remote, 2))
        if not isinstance(reply, socks5.SOCKS5UsernamePasswordReply) or not reply.success:
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))
    connection.send(socks5.SOCKS5CommandRequest.from_address(socks5.SOCKS5Command.CONNECT, (host, port)))
    await remote.write(connection.data_to_send())
    answer = connection.receive_data(await _reply(remote))
    if not isinstance(answer, socks5.SOCKS5Reply) or answer.reply_code != socks5.SOCKS5ReplyCode.SUCCEEDED:
        raise OSError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))


async def _reply(remote: Remote) -> bytes:
    """A whole reply and not a byte more: what follows belongs to the connection."""
    head = await _exactly(remote, 4)
    if head[3] == _NAME:
        size = await _exactly(remote, 1)
        return head + size + await _exactly(remote, size[0] + 2)
    if head[3] not in _ADDRESS_SIZES:
        raise ProtocolError("an unknown kind of address")
    return head + await _exactly(remote, _ADDRESS_SIZES[head[3]] + 2)


async def _exactly(remote: Remote, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = await remote.read(size - len(data))
        if not piece:
            raise OSError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
        data += piece
    return data
