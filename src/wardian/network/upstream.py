"""Asking the DNS servers that a sandbox's owner named, instead of the host's resolver."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence

import dns.asyncquery
import dns.exception
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype

DNS_PORT = 53
TRY_S = 2.0
_KINDS = {socket.AF_INET: dns.rdatatype.A, socket.AF_INET6: dns.rdatatype.AAAA}


async def ask(servers: Sequence[str], name: str, family: socket.AddressFamily) -> Sequence[str]:
    """Addresses of ``name``, from the first server that answers: over UDP, over TCP what does not fit.

    ``socket.gaierror``, as the host's resolver raises it, when there are none. Aliases are followed.
    """
    query = dns.message.make_query(dns.name.from_text(name), _KINDS[family])
    for server in servers:
        try:
            response, _ = await dns.asyncquery.udp_with_fallback(query, server, TRY_S, DNS_PORT)
        except (dns.exception.DNSException, OSError, EOFError, asyncio.IncompleteReadError):
            continue
        if response.rcode() == dns.rcode.NXDOMAIN:
            raise socket.gaierror(socket.EAI_NONAME, "no such name")
        if response.rcode() != dns.rcode.NOERROR:
            continue
        if isinstance(response, dns.message.QueryMessage):
            return _addresses(response)
    raise socket.gaierror(socket.EAI_AGAIN, "no server answered")


def _addresses(response: dns.message.QueryMessage) -> Sequence[str]:
    try:
        found = response.resolve_chaining().answer
    except dns.exception.DNSException:
        found = None
    if not found:
        raise socket.gaierror(socket.EAI_NODATA, "no address")
    return [item.to_text() for item in found]
