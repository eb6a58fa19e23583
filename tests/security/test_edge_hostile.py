"""The doors of a domain, with hostile clients at them: the proxy and the names."""

from __future__ import annotations

import asyncio
import socket
import ssl
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.security.doors import NAME, Doors

from wardian.api import http
from wardian.cli.listeners import Listeners
from wardian.config import Settings
from wardian.model.errors import Unavailable

# -- the proxy


@pytest.mark.parametrize(
    "target",
    [
        "example.com:443",
        "127.0.0.1:22",
        "[::1]:443",
        "localhost:8443",
        f"{NAME}.example.com:443",
        f"evil{NAME}:443",
        f"a.b.{NAME}:443",
        f"*.{NAME}:443",
        f".{NAME}:443",
        f"api.{NAME}",
        f"api.{NAME}:0",
        f"api.{NAME}:65536",
        f"api.{NAME}:443x",
        f"user@api.{NAME}:443",
        f"api.{NAME}:443@example.com:443",
        f"http://api.{NAME}/",
    ],
)
async def test_the_proxy_leads_nowhere_else(
    doors: Doors, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("the proxy dialled")

    request = f"CONNECT {target} HTTP/1.1\r\nHost: api.{NAME}:443\r\n\r\n".encode()
    with monkeypatch.context() as patch:
        reader, writer = await asyncio.open_connection("127.0.0.1", doors.proxy)
        patch.setattr(asyncio.get_running_loop(), "create_connection", never)
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        writer.close()
    assert head.split()[1] in (b"400", b"403")
    assert doors.behind.asked == []


async def test_a_plain_request_through_the_proxy_is_for_our_names_only(doors: Doors) -> None:
    """And the address that counts is the one that was asked for, whatever the Host header says."""
    ours = f"GET http://8080-i.{NAME}/ HTTP/1.1\r\nHost: example.com\r\n\r\n".encode()
    theirs = f"GET http://example.com/ HTTP/1.1\r\nHost: api.{NAME}\r\n\r\n".encode()
    assert b" 200 " in await doors.say(doors.proxy, ours)
    assert b" 403 " in await doors.say(doors.proxy, theirs)
    assert b" 403 " in await doors.say(doors.proxy, b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
    assert doors.behind.asked == [f"8080-i.{NAME}"]


async def test_nothing_is_smuggled_behind_a_connect(doors: Doors) -> None:
    early = f"CONNECT api.{NAME}:443 HTTP/1.1\r\nHost: x\r\n\r\nGET / HTTP/1.1\r\n\r\n".encode()
    assert b" 400 " in await doors.say(doors.proxy, early)
    folded = f"CONNECT api.{NAME}:443 HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n".encode()
    assert b" 400 " in await doors.say(doors.proxy, folded)


async def test_a_connect_that_never_ends_is_refused(doors: Doors) -> None:
    bomb = b"CONNECT x:1 HTTP/1.1\r\n" + b"x: y\r\n" * http.HEAD_BYTES_MAX
    reader, writer = await asyncio.open_connection("127.0.0.1", doors.proxy)
    writer.write(bomb)
    with suppress(ConnectionError):
        async with asyncio.timeout(10):
            assert b" 400 " in await reader.read(1000)
    writer.close()


@pytest.mark.parametrize("sent", [b"", b"CONN", b"CONNECT x:1 HTTP/1.1\r\nhost:"])
async def test_a_connect_that_never_comes_is_not_waited_for(
    doors: Doors, monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    monkeypatch.setattr(http, "HEAD_TIMEOUT_S", 0.05)
    reader, writer = await asyncio.open_connection("127.0.0.1", doors.proxy)
    writer.write(sent)
    async with asyncio.timeout(5):
        assert await reader.read() == b""
    writer.close()


# -- the names


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(
    "host", ["example.com", f"{NAME}.example.com", f"8080-i.x.{NAME}", "127.0.0.1", "[::1]"]
)
async def test_another_name_is_misdirected(doors: Doors, version: int, host: str) -> None:
    """Whatever the handshake (SNI) was for."""
    trust = doors.context()
    async with httpx.AsyncClient(verify=trust, http2=version == 2, http1=version == 1) as client:
        answer = await client.get(
            f"https://127.0.0.1:{doors.tls}/",
            headers={"host": host},
            extensions={"sni_hostname": f"api.{NAME}"},
        )
    assert (answer.http_version, answer.status_code) == (f"HTTP/{'1.1' if version == 1 else '2'}", 421)
    assert doors.behind.asked == []


async def test_one_name_of_ours_may_be_asked_over_a_connection_made_for_another(doors: Doors) -> None:
    """As browsers do with a wildcard certificate; the host decides, never the handshake."""
    async with httpx.AsyncClient(verify=doors.context(), http2=True) as client:
        url, sni = f"https://127.0.0.1:{doors.tls}/", {"sni_hostname": f"one.{NAME}"}
        for host in (f"one.{NAME}", f"two.{NAME}:{doors.tls}"):
            assert (await client.get(url, headers={"host": host}, extensions=sni)).status_code == 200
    assert doors.behind.asked == [f"one.{NAME}", f"two.{NAME}:{doors.tls}"]


@pytest.mark.parametrize(
    "head",
    [
        "GET / HTTP/1.1\r\nHost: one.{n}\r\nHost: two.{n}\r\n\r\n",
        "GET http://one@two.{n}/ HTTP/1.1\r\nHost: two.{n}\r\n\r\n",
        "GET ftp://two.{n}/ HTTP/1.1\r\nHost: two.{n}\r\n\r\n",
        "CONNECT two.{n}:443 HTTP/1.1\r\nHost: two.{n}\r\n\r\n",
    ],
)
async def test_a_request_is_for_one_host(doors: Doors, head: str) -> None:
    """On every listener, because the host says which sandbox gets it."""
    text = head.format(n=NAME).encode()
    assert b" 400 " in await doors.say(doors.plain, text)
    how = {"ssl": doors.context("http/1.1"), "server_hostname": f"one.{NAME}"}
    assert b" 400 " in await doors.say(doors.tls, text, **how)
    assert doors.behind.asked == []


async def test_the_address_in_the_request_line_wins(doors: Doors) -> None:
    text = f"GET http://one.{NAME}:1/path HTTP/1.1\r\nHost: two.{NAME}\r\n\r\n".encode()
    assert b" 200 " in await doors.say(doors.plain, text)
    assert doors.behind.asked == [f"one.{NAME}:1"]


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
async def test_old_tls_and_no_tls_are_refused(doors: Doors) -> None:
    old = doors.context()
    old.set_ciphers("ALL:@SECLEVEL=0")
    old.minimum_version, old.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await asyncio.open_connection("127.0.0.1", doors.tls, ssl=old, server_hostname=f"api.{NAME}")
    reader, writer = await asyncio.open_connection("127.0.0.1", doors.tls)
    writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    with suppress(ConnectionError):
        assert b"HTTP/" not in await reader.read()
    writer.close()
    assert doors.behind.asked == []


# -- at the start


def test_without_tls_there_is_one_door(tmp_path: Path) -> None:
    with socket.socket() as probe:
        settings = Settings(tmp_path, port=0, domain=NAME, tls=False)
        listeners = Listeners.open(settings)
        probe.connect(listeners.plain.getsockname())
        listeners.plain.close()
    assert listeners.secure is None
    assert list(tmp_path.iterdir()) == []


def test_a_domain_that_no_certificate_is_believed_for_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match=r"\*\.localhost"):
        Listeners.open(Settings(tmp_path, port=0, domain="localhost", tls_port=0))


def test_sockets_are_there_before_anybody_is_told(tmp_path: Path) -> None:
    """A port that is taken is a refusal at start, with its option named."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        settings = Settings(tmp_path, port=0, domain=NAME, tls_port=taken.getsockname()[1])
        with pytest.raises(Unavailable, match="cannot listen") as caught:
            Listeners.open(settings)
        assert "--tls-port" in str(caught.value)
