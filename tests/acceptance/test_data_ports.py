"""The ports of a sandbox, over HTTP and WebSocket, by header and by host."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from e2b import Sandbox
from websockets.sync.client import connect

HTTP, WEBSOCKET = 8123, 8124

WEB = """
import http.server, time
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def log_message(self, *args): pass
    def do_GET(self):
        if self.path == "/events":
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Connection", "close")
            self.end_headers()
            for number in range(3):
                self.wfile.write(b"data: %d\\n\\n" % number)
                self.wfile.flush()
                time.sleep(0.2)
            return
        body = (self.path + "\\n" + str(self.headers)).encode()
        self.send_response(200)
        self.send_header("Set-Cookie", "a=1")
        self.send_header("Set-Cookie", "b=2")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def do_POST(self):
        size = int(self.headers["Content-Length"])
        while size:
            size -= len(self.rfile.read(min(size, 1 << 20)))
        self.send_response(201)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")
http.server.ThreadingHTTPServer(("127.0.0.1", PORT), Handler).serve_forever()
"""

# A WebSocket echo in the standard library alone: what the base image has.
ECHO = """
import base64, hashlib, socketserver
class Handler(socketserver.StreamRequestHandler):
    def handle(self):
        while (line := self.rfile.readline().strip()):
            name, _, value = line.partition(b": ")
            if name.lower() == b"sec-websocket-key":
                key = value
        accept = base64.b64encode(hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
        self.wfile.write(b"HTTP/1.1 101 Switching Protocols\\r\\nUpgrade: websocket\\r\\n"
                         b"Connection: Upgrade\\r\\nSec-WebSocket-Accept: " + accept + b"\\r\\n\\r\\n")
        while True:
            head = self.rfile.read(2)
            size = head[1] & 127
            if size == 126: size = int.from_bytes(self.rfile.read(2), "big")
            elif size == 127: size = int.from_bytes(self.rfile.read(8), "big")
            mask = self.rfile.read(4)
            data = self.rfile.read(size)
            data = bytes(b ^ mask[i % 4] for i, b in enumerate(data))
            length = bytes([size]) if size < 126 else b"\\x7e" + size.to_bytes(2, "big")
            self.wfile.write(head[:1] + length + data)
            if head[0] & 15 == 8: return
socketserver.ThreadingTCPServer(("127.0.0.1", PORT), Handler).serve_forever()
"""


def listen(sandbox: Sandbox, program: str, port: int, *, at: str = "127.0.0.1") -> Any:
    """Run a service and wait until it listens."""
    sandbox.files.write(f"/tmp/service-{port}.py", program.replace("PORT", str(port)))
    handle = sandbox.commands.run(f"python3 /tmp/service-{port}.py", background=True, timeout=0)
    dial = f"import socket; socket.create_connection(('{at}', {port}))"
    sandbox.commands.run(f'until python3 -c "{dial}" 2>/dev/null; do :; done')
    return handle


@pytest.fixture(scope="module")
def services(shared: Sandbox) -> Iterator[None]:
    handles = [listen(shared, WEB, HTTP), listen(shared, ECHO, WEBSOCKET)]
    yield
    for handle in handles:
        handle.kill()


@pytest.fixture
def web(server: Any, shared: Sandbox, services: None) -> Iterator[httpx.Client]:
    headers = {"E2b-Sandbox-Id": shared.sandbox_id, "E2b-Sandbox-Port": str(HTTP)}
    with httpx.Client(base_url=server.url, headers=headers) as client:
        yield client


def test_requests_and_answers_pass_through(web: httpx.Client) -> None:
    answer = web.get("/a%20b/c?x=1&y", headers={"X-Mine": "1", "Connection": "X-Hop", "X-Hop": "1"})
    assert answer.text.startswith("/a%20b/c?x=1&y\n")
    seen = {line.partition(": ")[0]: line.partition(": ")[2] for line in answer.text.splitlines()[1:]}
    assert seen["X-Mine"] == "1"
    assert seen["Host"] == seen["X-Forwarded-Host"] == urlsplit(str(web.base_url)).netloc
    assert (seen["X-Forwarded-For"], seen["X-Forwarded-Proto"]) == ("127.0.0.1", "http")
    assert "x-hop" not in {name.lower() for name in seen}
    assert answer.headers.get_list("set-cookie") == ["a=1", "b=2"]


def test_bodies_stream(web: httpx.Client) -> None:
    answer = web.post("/", content=b"z" * 10_000_000)
    assert (answer.status_code, answer.text) == (201, "ok")


def test_events_arrive_one_by_one(web: httpx.Client) -> None:
    with web.stream("GET", "/events") as answer:
        pieces = [piece for piece in answer.iter_raw() if piece]
    assert pieces == [b"data: 0\n\n", b"data: 1\n\n", b"data: 2\n\n"]


def test_ports_are_reached_by_host_too(server: Any, shared: Sandbox, services: None) -> None:
    host = shared.get_host(HTTP)
    assert host.startswith(f"{HTTP}-{shared.sandbox_id}.")
    assert httpx.get(server.url + "/here", headers={"Host": host}).text.startswith("/here\n")


def test_a_service_on_the_other_loopback_address_is_reached(web: httpx.Client, shared: Sandbox) -> None:
    """What listens on 127.0.0.1 or on ::1 alone is reachable all the same."""
    program = """
import http.server, socket
class Server(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6
Server(("::1", PORT), http.server.SimpleHTTPRequestHandler).serve_forever()
"""
    handle = listen(shared, program, 8125, at="::1")
    assert web.get("/", headers={"E2b-Sandbox-Port": "8125"}).status_code == 200
    handle.kill()


def test_closed_ports_and_strangers(web: httpx.Client, shared: Sandbox) -> None:
    closed = web.get("/", headers={"E2b-Sandbox-Port": "9"})
    assert closed.status_code == 502
    assert closed.json() == {
        "sandboxId": shared.sandbox_id,
        "message": "The sandbox is running but port is not open",
        "port": 9,
        "code": 502,
    }
    stranger = web.get("/", headers={"E2b-Sandbox-Id": "inobody"})
    assert stranger.status_code == 502
    assert stranger.json() == {"sandboxId": "inobody", "message": "The sandbox was not found", "code": 502}
    assert web.get("/", headers={"E2b-Sandbox-Port": "none"}).status_code == 400
    page = web.get("/", headers={"E2b-Sandbox-Port": "9", "User-Agent": "Mozilla/5.0"})
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert "<title>Closed Port Error</title>" in page.text


def test_websockets(server: Any, shared: Sandbox, services: None) -> None:
    headers = {"E2b-Sandbox-Id": shared.sandbox_id, "E2b-Sandbox-Port": str(WEBSOCKET)}
    with connect(server.url.replace("http", "ws") + "/x", additional_headers=headers) as socket:
        for message in ("héllo", b"\0\1", "x" * 50_000, ""):
            socket.send(message)
            assert socket.recv() == message


def test_private_ports(own_sandbox: Callable[..., Sandbox], server: Any) -> None:
    mine = own_sandbox(network={"allow_public_traffic": False, "mask_request_host": "app.test:${PORT}"})
    listen(mine, WEB, HTTP)
    headers = {"E2b-Sandbox-Id": mine.sandbox_id, "E2b-Sandbox-Port": str(HTTP)}
    assert httpx.get(server.url, headers=headers).status_code == 403
    token = mine.traffic_access_token or ""
    answer = httpx.get(server.url, headers={**headers, "e2b-traffic-access-token": token})
    assert answer.status_code == 200
    assert f"Host: app.test:{HTTP}" in answer.text


def test_traffic_wakes_a_paused_sandbox(own_sandbox: Callable[..., Sandbox], server: Any) -> None:
    mine = own_sandbox(lifecycle={"on_timeout": "pause", "auto_resume": True})
    listen(mine, WEB, HTTP)
    mine.set_timeout(20)
    mine.pause()
    assert mine.is_running() is False
    headers = {"E2b-Sandbox-Id": mine.sandbox_id, "E2b-Sandbox-Port": str(HTTP)}
    assert httpx.get(server.url + "/awake", headers=headers, timeout=15).text.startswith("/awake\n")
    assert mine.is_running() is True
    assert mine.get_info().end_at - datetime.now(UTC) > timedelta(seconds=240), "five minutes at least"
