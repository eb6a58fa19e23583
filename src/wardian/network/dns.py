"""DNS for guests: parse the query strictly, ask the host's resolver, tell only what may be reached.

Answers are A and AAAA records of whatever ``getaddrinfo`` says (or the servers that the sandbox's owner
named), without the addresses that the policy denies: a name of the attacker's that points inward does not
help. Anything else is refused, not made up.
"""

from __future__ import annotations

import asyncio
import errno
import os
import re
import socket
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import dns.exception
import dns.flags
import dns.message
import dns.opcode
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.rrset

from wardian.network import upstream
from wardian.network.policy import Decision

HOSTS_FILE = Path("/etc/hosts")
QUERY_MAX = 1232
RESOLVE_S = 5.0
TTL_S = 30
ADDRESSES_MAX = 8
THREADS = 64  # they may hang longer than we wait
_ANSWER_MAX = 512  # without EDNS
_HOST = re.compile(r"(?=.{1,253}\Z)[A-Za-z0-9_]([A-Za-z0-9_-]{0,62})(\.[A-Za-z0-9_][A-Za-z0-9_-]{0,62})*")
_FAMILIES = {dns.rdatatype.A: socket.AF_INET, dns.rdatatype.AAAA: socket.AF_INET6}
_ABSENT = frozenset({socket.EAI_NONAME})
_NO_SUCH_ADDRESS = frozenset({socket.EAI_NODATA, socket.EAI_ADDRFAMILY})
_RCODES = {"no_such_name": dns.rcode.NXDOMAIN, "no_address": dns.rcode.NOERROR}


@dataclass(frozen=True, slots=True)
class View:
    """How one sandbox sees names: which it may ask for, which addresses it may be told, and who is asked.

    ``stand_in`` gives the address of a name that means something inside only. ``servers``: None is the host's
    resolver, an empty list nobody.
    """

    may_ask: Callable[[str], Decision]
    may_tell: Callable[[str], bool]
    stand_in: Callable[[str], str | None] = lambda name: None
    servers: Sequence[str] | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """What came of looking a name up: a slug, and the addresses if it is ``resolved``."""

    outcome: str
    addresses: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Answer:
    """The packet, and for the record: what was asked, a slug for what came of it, and what was told."""

    packet: bytes
    name: str
    outcome: str
    addresses: Sequence[str] = ()


def parse(query: bytes) -> dns.message.Message:
    """A standard query of one question. OSError for anything else: there is nobody to answer properly."""
    try:
        if len(query) > QUERY_MAX:
            raise ValueError("too long")
        message = dns.message.from_wire(query)
    except (dns.exception.DNSException, ValueError):
        raise OSError(errno.EBADMSG, os.strerror(errno.EBADMSG)) from None
    is_query = not message.flags & dns.flags.QR and message.opcode() == dns.opcode.QUERY
    if not is_query or len(message.question) != 1 or message.answer or message.authority:
        raise OSError(errno.EBADMSG, os.strerror(errno.EBADMSG))
    return message


def respond(message: dns.message.Message, rcode: dns.rcode.Rcode, addresses: Sequence[str] = ()) -> bytes:
    """The answer packet. More than fits one datagram is left out and said so."""
    response = dns.message.make_response(message, recursion_available=True, our_payload=QUERY_MAX)
    response.set_rcode(rcode)
    question = message.question[0]
    if addresses:
        response.answer.append(
            dns.rrset.from_text_list(question.name, TTL_S, question.rdclass, question.rdtype, addresses)
        )
    size = max(_ANSWER_MAX, min(message.payload or 0, QUERY_MAX))
    try:
        return response.to_wire(max_size=size)
    except dns.exception.TooBig:
        response.answer.clear()
        response.flags |= dns.flags.TC
        return response.to_wire(max_size=size)


class Resolver:
    """Answers guests' queries by the host's resolver. One for all sandboxes; ``close`` ends it."""

    def __init__(self, lookup: Callable[[str, socket.AddressFamily], Sequence[str]] | None = None) -> None:
        self._lookup = lookup or host_lookup
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="resolve")

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def answer(self, query: bytes, view: View) -> Answer:
        """Answer one packet. OSError for no proper query."""
        message = parse(query)
        question = message.question[0]
        name = question.name.to_text(omit_final_dot=True).lower()
        family = _FAMILIES.get(question.rdtype) if question.rdclass == dns.rdataclass.IN else None
        if (inside := view.stand_in(name)) is not None:
            told = [inside] if family is socket.AF_INET else []
            return Answer(respond(message, dns.rcode.NOERROR, told), name, "granted")
        may_ask = view.may_ask(name)
        if not may_ask.allowed:
            return Answer(respond(message, dns.rcode.REFUSED), name, may_ask.reason)
        if family is None:
            return Answer(respond(message, dns.rcode.NOTIMP), name, "unsupported")
        if not _HOST.fullmatch(name):
            return Answer(respond(message, dns.rcode.NXDOMAIN), name, "not_a_host_name")
        found = await self.look_up(name, family, view.servers)
        if found.outcome != "resolved":
            return Answer(
                respond(message, _RCODES.get(found.outcome, dns.rcode.SERVFAIL)), name, found.outcome
            )
        allowed = [address for address in found.addresses if view.may_tell(address)][:ADDRESSES_MAX]
        if not allowed:
            return Answer(respond(message, dns.rcode.NXDOMAIN), name, "denied_address")
        return Answer(respond(message, dns.rcode.NOERROR, allowed), name, "resolved", allowed)

    async def look_up(
        self, name: str, family: socket.AddressFamily, servers: Sequence[str] | None = None
    ) -> Found:
        """Ask for the addresses of a name: the host's resolver, or ``servers`` instead. Filters nothing."""
        try:
            async with asyncio.timeout(RESOLVE_S):
                if servers is not None:
                    found = await upstream.ask(servers, name, family)
                else:
                    loop = asyncio.get_running_loop()
                    found = await loop.run_in_executor(self._threads, self._lookup, name, family)
        except socket.gaierror as error:
            if error.errno in _ABSENT:
                return Found("no_such_name")
            return Found("no_address" if error.errno in _NO_SUCH_ADDRESS else "failed")
        except TimeoutError:
            return Found("timeout")
        except OSError:
            return Found("failed")
        return Found("resolved", list(dict.fromkeys(found)))


def in_table(file: Path, name: str, family: socket.AddressFamily) -> Sequence[str]:
    """What a table of hosts says: on each line an address and its names."""
    try:
        lines = file.read_text(errors="replace").splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        address, *names = line.partition("#")[0].split() or [""]
        if name in map(str.lower, names) and (":" in address) == (family is socket.AF_INET6):
            found.append(address)
    return found


def host_lookup(name: str, family: socket.AddressFamily) -> Sequence[str]:
    """Addresses of ``name``, taken as a complete name: the host's search domains are none of the guest's
    business. With the final dot that says so, resolvers do not look into the host's table: we do.
    """
    if table := in_table(HOSTS_FILE, name, family):
        return table
    found = socket.getaddrinfo(f"{name}.".encode(), None, family=family, type=socket.SOCK_STREAM)
    return [str(address[0]) for _, _, _, _, address in found]
