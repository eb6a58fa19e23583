"""An upstream that answers at once: what every gateway that is measured leads to.

``python -m bench.upstream CERTIFICATE [ADDRESS]`` (key and certificate, PEM; ``-`` for no TLS) serves on a
free port and prints it. ``/SIZE`` answers with so many bytes, ``/events`` with one server-sent event, and the
next never comes.
"""

from __future__ import annotations

import asyncio
import ssl
import sys

import uvloop

EVENT = b"data: first\n\n"


async def _serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            writer.write(_answer(head.split(b" ", 2)[1]))
            await writer.drain()
    except (OSError, asyncio.IncompleteReadError):
        pass
    finally:
        writer.close()


def _answer(target: bytes) -> bytes:
    if target == b"/events":
        head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
        return head + b"%x\r\n%s\r\n" % (len(EVENT), EVENT)
    size = int(target[1:])
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nContent-Length: %d\r\n\r\n" % size
    return head + b"x" * size


async def _main(certificate: str, address: str = "127.0.0.1") -> None:
    context = None
    if certificate != "-":
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
    server = await asyncio.start_server(_serve, address, 0, ssl=context)
    print(server.sockets[0].getsockname()[1], flush=True)  # noqa: T201
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(_main(*sys.argv[1:]))
