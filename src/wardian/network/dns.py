"""DNS for guests: parse the query strictly, ask the host's resolver, tell only what may be reached.

Answers are A and AAAA records of whatever ``getaddrinfo`` says, without the addresses that the policy
denies: a name of the attacker's that points inward does not help. Anything else is refused, not made up.
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

import dns.exception
import dns.flags
import dns.message
import dns.opcode
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.rrset

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


@dataclass(frozen=True, slots=True)
class Question:
    """A query that can be answered: a host name and the family of addresses wanted."""

    message: dns.message.Message
    name: str
    family: socket.AddressFamily


@dataclass(frozen=True, slots=True)
class Answer:
    """The packet, and for the record: what was asked and a slug for what came of it."""

    packet: bytes
    name: str
    outcome: str


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

    async def answer(self, query: bytes, *, internet: bool, reachable: Callable[[str], bool]) -> Answer:
        """Answer one packet; ``reachable`` says whether an address may be told.

        OSError for no proper query.
        """
        message = parse(query)
        question = message.question[0]
        name = question.name.to_text(omit_final_dot=True)
        if not internet:
            return Answer(respond(message, dns.rcode.REFUSED), name, "internet_off")
        family = _FAMILIES.get(question.rdtype)
        if family is None or question.rdclass != dns.rdataclass.IN:
            return Answer(respond(message, dns.rcode.NOTIMP), name, "unsupported")
        if not _HOST.fullmatch(name):
            return Answer(respond(message, dns.rcode.NXDOMAIN), name, "not_a_host_name")
        return await self._resolve(Question(message, name, family), reachable)

    async def _resolve(self, question: Question, reachable: Callable[[str], bool]) -> Answer:
        message, name = question.message, question.name
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(RESOLVE_S):
                found = await loop.run_in_executor(self._threads, self._lookup, name, question.family)
        except socket.gaierror as error:
            if error.errno in _ABSENT:
                return Answer(respond(message, dns.rcode.NXDOMAIN), name, "no_such_name")
            if error.errno in _NO_SUCH_ADDRESS:
                return Answer(respond(message, dns.rcode.NOERROR), name, "no_address")
            return Answer(respond(message, dns.rcode.SERVFAIL), name, "failed")
        except TimeoutError:
            return Answer(respond(message, dns.rcode.SERVFAIL), name, "timeout")
        except OSError:
            return Answer(respond(message, dns.rcode.SERVFAIL), name, "failed")
        allowed = [address for address in dict.fromkeys(found) if reachable(address)]
        if not allowed:
            return Answer(respond(message, dns.rcode.NXDOMAIN), name, "denied_address")
        return Answer(respond(message, dns.rcode.NOERROR, allowed[:ADDRESSES_MAX]), name, "resolved")


def host_lookup(name: str, family: socket.AddressFamily) -> Sequence[str]:
    """Addresses of ``name``, taken as a complete name: the host's search domains are none of the guest's
    business.
    """
    found = socket.getaddrinfo(f"{name}.".encode(), None, family=family, type=socket.SOCK_STREAM)
    return [str(address[0]) for _, _, _, _, address in found]
