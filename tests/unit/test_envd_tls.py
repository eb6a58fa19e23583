"""Services inside that speak TLS themselves: spoken to without verifying, in both directions at once."""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import cast

import pytest
from tests.unit.certificates import self_signed
from tests.unit.listening import listening

from wardian.api.envd.tls import TlsTunnel
from wardian.guest.guest import Tunnel

MIB = 1 << 20


class Pipe:
    """A tunnel that leads to a server on this machine."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def read(self, limit: int = 65536) -> bytes:
        return await self.reader.read(min(limit, 700))  # records come in pieces

    async def write(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def close(self) -> None:
        self.writer.close()
        await self.writer.wait_closed()


@asynccontextmanager
async def pipe_to_echo(context: ssl.SSLContext | None) -> AsyncIterator[Tunnel]:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()

    async with listening(echo, context) as port:
        pipe = Pipe(*await asyncio.open_connection("127.0.0.1", port))
        yield cast(Tunnel, pipe)
        await pipe.close()


async def test_bytes_come_back_whole_while_others_are_on_their_way(tmp_path: Path) -> None:
    context, _ = self_signed("inside.test")
    sent = os.urandom(2 * MIB)
    async with pipe_to_echo(context) as plain:
        tunnel = await TlsTunnel.over(plain)

        async def send() -> None:
            for at in range(0, len(sent), 50_000):
                await tunnel.write(sent[at : at + 50_000])

        sending = asyncio.create_task(send())
        heard = bytearray()
        while len(heard) < len(sent):
            heard += await tunnel.read()
        await sending
        assert heard == sent


async def test_a_service_that_speaks_no_tls_is_an_error() -> None:
    async with pipe_to_echo(None) as plain:
        with pytest.raises(OSError, match="SSL"):
            await TlsTunnel.over(plain)
