"""A tenant's SOCKS5 proxy: spoken to as the RFCs say, verified, and never worked around."""

from __future__ import annotations

import asyncio
import errno
import os
from pathlib import Path

import pytest
from tests.unit.certificates import self_signed
from tests.unit.listening import Handle, listening

from wardian.model.egress import EgressProxy
from wardian.network.socks import dial_through

HOME = "127.0.0.1"


def proxy(asked: list[bytes], *, reply: bytes, method: bytes = b"\0", passes: bytes = b"\1\0") -> Handle:
    """A proxy that notes what it is asked, answers ``reply``, and then says where the traffic came out."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.read(600))
        writer.write(b"\5" + method)
        if method == b"\2":
            asked.append(await reader.read(600))
            writer.write(passes)
        asked.append(await reader.read(600))
        writer.write(reply + b"from behind")
        await reader.read(600)

    return handle


SUCCESS = b"\5\0\0\1\1\2\3\4\0\x50"


@pytest.mark.parametrize("reply", [SUCCESS, b"\5\0\0\3\4here\0\x50", b"\5\0\0\4" + bytes(16) + b"\0\x50"])
async def test_a_name_is_passed_on_as_a_name_and_nothing_is_lost(reply: bytes) -> None:
    asked: list[bytes] = []
    async with listening(proxy(asked, reply=reply)) as port:
        remote = await dial_through(EgressProxy(f"p.test:{port}"), None, HOME, "good.test", 443)
        assert asked == [b"\5\1\0", b"\5\1\0\3\x09good.test\1\xbb"]
        assert await remote.read(100) == b"from behind"
        remote.close()


async def test_credentials_are_given_to_a_proxy_that_wants_them() -> None:
    asked: list[bytes] = []
    async with listening(proxy(asked, reply=SUCCESS, method=b"\2")) as port:
        made = EgressProxy(f"p.test:{port}", "me")
        (await dial_through(made, "pass", HOME, "192.0.2.1", 80)).close()
    assert asked == [b"\5\2\0\2", b"\1\2me\4pass", b"\5\1\0\1\xc0\0\2\1\0\x50"]


@pytest.mark.parametrize(
    ("method", "passes", "reply", "number"),
    [
        (b"\xff", b"", b"", errno.EPROTO),  # none of our methods
        (b"\2", b"\1\1", b"", errno.EACCES),
        (b"\0", b"", b"\5\2\0\1" + bytes(6), errno.ECONNREFUSED),
        (b"\0", b"", b"HTTP/1.1 400\r\n", errno.EPROTO),
        (b"\0", b"", b"\5\0\0\7" + bytes(6), errno.EPROTO),
    ],
)
async def test_whatever_goes_wrong_is_the_end(
    method: bytes, passes: bytes, reply: bytes, number: int
) -> None:
    async with listening(proxy([], reply=reply, method=method, passes=passes)) as port:
        with pytest.raises(OSError) as caught:  # noqa: PT011 - its number is looked at
            await dial_through(EgressProxy(f"p.test:{port}", "me"), "pass", HOME, "good.test", 80)
    assert caught.value.errno == number


async def test_a_proxy_in_tls_is_verified(tmp_path: Path) -> None:
    context, pem = self_signed("socks.test")
    asked: list[bytes] = []
    async with listening(proxy(asked, reply=SUCCESS), context) as port:
        good = EgressProxy(f"p.test:{port}", tls=True, server_name="socks.test", ca_cert=pem)
        remote = await dial_through(good, None, HOME, "good.test", 80)
        assert await remote.read(100) == b"from behind"
        remote.close()
        for bad in (
            EgressProxy(f"p.test:{port}", tls=True, ca_cert=pem),  # another name
            EgressProxy(f"p.test:{port}", tls=True, server_name="socks.test"),  # of nobody we know
        ):
            asked.clear()
            with pytest.raises(OSError, match=os.strerror(errno.EPROTO)):
                await dial_through(bad, None, HOME, "good.test", 80)
            assert asked == []
