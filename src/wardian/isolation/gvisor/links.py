"""The machine's network devices: two loopbacks and one rule.

``eth0`` is a loopback device with 10.0.0.2/0, so netstack takes every IPv4 address for its own; the NAT rule
then turns each outgoing TCP connection, whatever its destination, into one to the agent's port. Datagrams to
port 53 reach the agent's DNS socket without a rule. There is no wire: a guest that breaks its own rules
reaches nothing at all.
"""

from __future__ import annotations

import socket
import struct
from typing import Any

AGENT_TCP_PORT = 61000
ADDRESS = "10.0.0.2"

_HOOK_PREROUTING, _HOOK_INPUT, _HOOK_OUTPUT, _HOOK_POSTROUTING = 0, 1, 3, 4
_VALID_HOOKS = 0b11011
_INVERT_DESTINATION = 0x10
_ACCEPT = -2  # -NF_ACCEPT - 1
_ENTRY_SIZE = 112  # struct ipt_entry


def link_arguments() -> dict[str, Any]:
    """Argument of ``Network.CreateLinksAndRoutes``; :func:`nat_table` goes along in a file."""
    return {
        "LoopbackLinks": [
            {
                "Name": "lo",
                "Addresses": [
                    {"Address": "127.0.0.1", "PrefixLen": 8},
                    {"Address": "::1", "PrefixLen": 128},
                ],
                "Routes": [{"Destination": {"IP": "127.0.0.0", "Mask": "/wAAAA=="}}],
            },
            {
                "Name": "eth0",
                "Addresses": [{"Address": ADDRESS, "PrefixLen": 0}],
                "Routes": [{"Destination": {"IP": "0.0.0.0", "Mask": "AAAAAA=="}}],
            },
        ],
        "NATBlob": True,
    }


def _entry(target: bytes, *, destination: str = "0.0.0.0", mask: str = "0.0.0.0", tcp: bool = False,
           not_destination: bool = False) -> bytes:  # fmt: skip
    address = struct.pack(
        "<4s4s4s4s64sHBB",
        bytes(4),
        socket.inet_aton(destination),
        bytes(4),
        socket.inet_aton(mask),
        bytes(64),  # interface names and masks
        socket.IPPROTO_TCP if tcp else 0,
        0,
        _INVERT_DESTINATION if not_destination else 0,
    )
    return address + struct.pack("<IHHI16x", 0, _ENTRY_SIZE, _ENTRY_SIZE + len(target), 0) + target


def nat_table(port: int = AGENT_TCP_PORT) -> bytes:
    """The NAT table as ``IPT_SO_SET_REPLACE`` takes it: all TCP but to 127/8 and our own address goes to
    ``port``."""
    accept = struct.pack("<H29sBi4x", 40, b"", 0, _ACCEPT)
    redirect = struct.pack("<H29sBIIII", 56, b"REDIRECT", 0, 1, 2, 0, 0) + struct.pack(">HH4x", port, port)
    error = struct.pack("<H29sB32s", 64, b"ERROR", 0, b"ERROR")
    entries = b""
    first, last = [0] * 5, [0] * 5  # offsets of each hook's first entry and of its policy

    def add(*more: bytes, hook: int | None = None) -> None:
        nonlocal entries
        for position, entry in enumerate(more):
            if hook is not None and position == 0:
                first[hook] = len(entries)
            if hook is not None and position == len(more) - 1:
                last[hook] = len(entries)
            entries += entry

    add(_entry(accept), hook=_HOOK_PREROUTING)
    add(_entry(accept), hook=_HOOK_INPUT)
    add(
        _entry(accept, destination=ADDRESS, mask="255.255.255.255", tcp=True),
        _entry(redirect, destination="127.0.0.0", mask="255.0.0.0", tcp=True, not_destination=True),
        _entry(accept),
        hook=_HOOK_OUTPUT,
    )
    add(_entry(accept), hook=_HOOK_POSTROUTING)
    add(_entry(error))
    count = 7
    header = struct.pack("<32sIII5I5IIQ", b"nat", _VALID_HOOKS, count, len(entries), *first, *last, count, 0)
    return header + entries


__all__ = ["ADDRESS", "AGENT_TCP_PORT", "link_arguments", "nat_table"]
