"""Files searched for a tenant's secrets, by the one process that can open these.

A search has a socket of its own: what is wanted goes out over it, with a descriptor of every file, and what
was found comes back. Values never do.
"""

from __future__ import annotations

import base64
import json
import os
import socket
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from wardian.model.secret import Place
from wardian.snapshots.scan import Hit, Report

PAGES = "pages.data"
"""The file of a memory image that is memory, page by page in any order."""


def send(
    sock: socket.socket,
    paths: Sequence[Path],
    secrets: Sequence[tuple[str, Place]],
    canaries: Sequence[bytes],
    fingerprints: bytes,
) -> None:
    """Say what to search for what. Blocks."""
    order = {
        "files": [path.name for path in paths],
        "secrets": [[label, place.tenant, place.secret_id, place.version] for label, place in secrets],
        "canaries": [base64.b64encode(canary).decode() for canary in canaries],
        "fingerprints": base64.b64encode(fingerprints).decode(),
    }
    data = json.dumps(order).encode()
    sock.sendall(len(data).to_bytes(8) + data)
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            socket.send_fds(sock, [b"\0"], [descriptor])
        finally:
            os.close(descriptor)


def take(sock: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """What :func:`send` said, and the descriptors. Blocks; OSError when the other side is gone."""
    order: dict[str, Any] = json.loads(_exactly(sock, int.from_bytes(_exactly(sock, 8))))
    descriptors: list[int] = []
    try:
        for _ in order["files"]:
            _, fds, _, _ = socket.recv_fds(sock, 1, 1, socket.MSG_CMSG_CLOEXEC)
            if not fds:
                raise ConnectionResetError("a file is missing")
            descriptors += fds
    except BaseException:
        for descriptor in descriptors:
            os.close(descriptor)
        raise
    return order, descriptors


def answer(sock: socket.socket, report: Report) -> None:
    """Send what was found, and hang up. Blocks."""
    with sock, suppress(OSError):
        sock.sendall(json.dumps(asdict(report)).encode())


def receive(sock: socket.socket) -> Report | None:
    """What was found; None when the other side hung up without a word. Blocks."""
    data = b"".join(iter(lambda: sock.recv(1 << 16), b""))
    if not data:
        return None
    told = json.loads(data)
    hits = [Hit(**hit | {"inside": tuple(hit["inside"])}) for hit in told.pop("hits")]
    return Report(**told, hits=hits)


def _exactly(sock: socket.socket, size: int) -> bytes:
    data = sock.recv(size, socket.MSG_WAITALL)
    if len(data) < size:
        raise ConnectionResetError("the other side is gone")
    return data
