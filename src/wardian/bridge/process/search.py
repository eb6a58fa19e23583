"""Searches files for secrets, which only this process can open. Their values stay here."""

from __future__ import annotations

import asyncio
import base64
import os
import socket
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from wardian.bridge import searching
from wardian.bridge.process.works import Works
from wardian.model.errors import NotFound
from wardian.model.secret import Place
from wardian.snapshots.needles import Needle
from wardian.snapshots.scan import FileSource, Limits, Report, scan

LIMITS = Limits(threads=1)
"""One thread: requests go on meanwhile."""


async def search(works: Works, sock: socket.socket) -> None:
    """Do one search, as :mod:`wardian.bridge.searching` says."""
    sock.setblocking(True)
    with sock:
        order, descriptors = await asyncio.to_thread(searching.take, sock)
        needles = await _needles(works, order)
        key = base64.b64decode(order["fingerprints"])
        report = await asyncio.to_thread(_scan, order["files"], descriptors, needles, key)
        await asyncio.to_thread(searching.answer, sock, report)


async def _needles(works: Works, order: dict[str, Any]) -> Sequence[Needle]:
    found = []
    for label, tenant, secret_id, version in order["secrets"]:
        try:
            found.append(Needle(label, await works.value(Place(tenant, secret_id, version))))
        except NotFound:  # removed meanwhile
            continue
    canaries = [base64.b64decode(canary) for canary in order["canaries"]]
    return [*found, *(Needle(f"canary:{number}", value) for number, value in enumerate(canaries, 1))]


def _scan(names: Sequence[str], descriptors: Sequence[int], needles: Sequence[Needle], key: bytes) -> Report:
    with ExitStack() as stack:
        for descriptor in descriptors:
            stack.callback(os.close, descriptor)
        sources = [
            stack.enter_context(FileSource(descriptor, name=name, paged=name == searching.PAGES))
            for name, descriptor in zip(names, descriptors, strict=True)
        ]
        return scan(sources, needles, LIMITS, fingerprints=key)
