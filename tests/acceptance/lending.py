"""A host that has everything to lend: a proxy and package indexes that want passwords, on its loopback."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import socket
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

PROXY_PASSWORD, INDEX_PASSWORD, NPM_TOKEN = "pr0xy-p4ssw0rd", "1ndex-p4ssw0rd", "npm_t0ken-lent"
USER = "lender"
KEPT = frozenset({"range", "if-range", "if-modified-since", "user-agent"})
"""The headers of a request that the proxy passes on."""


def basic(password: str) -> str:
    return "Basic " + base64.b64encode(f"{USER}:{password}".encode()).decode()


@contextmanager
def serving(handler: type[BaseHTTPRequestHandler]) -> Iterator[int]:
    """The port where it answers, on the loopback."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class Quiet(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def say(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def proxy() -> Iterator[tuple[int, set[str]]]:
    """An HTTP proxy that leads anywhere for whoever knows the password: its port, and the hosts asked for."""
    asked: set[str] = set()

    class Proxy(Quiet):
        def _allowed(self) -> bool:
            if self.headers.get("Proxy-Authorization") == basic(PROXY_PASSWORD):
                return True
            self.say(407, Proxy_Authenticate='Basic realm="proxy"')
            return False

        def do_CONNECT(self) -> None:
            if not self._allowed():
                return
            host, _, port = self.path.rpartition(":")
            asked.add(host)
            with socket.create_connection((host, int(port)), 30) as there:
                self.send_response(200)
                self.end_headers()
                self.wfile.flush()
                _join(self.connection, there)
            self.close_connection = True

        def do_GET(self) -> None:
            if not self._allowed():
                return
            parts = urlsplit(self.path)
            assert parts.hostname
            asked.add(parts.hostname)
            with socket.create_connection((parts.hostname, parts.port or 80), 30) as there:
                path = parts.path + (f"?{parts.query}" if parts.query else "")
                head = f"{self.command} {path} HTTP/1.1\r\nHost: {parts.netloc}\r\nConnection: close\r\n"
                head += "".join(
                    f"{name}: {each}\r\n" for name, each in self.headers.items() if name.lower() in KEPT
                )
                there.sendall(head.encode() + b"\r\n")
                while piece := there.recv(1 << 16):
                    self.wfile.write(piece)
            self.close_connection = True

        do_HEAD = do_GET

    with serving(Proxy) as port:
        yield port, asked


def _join(one: socket.socket, other: socket.socket) -> None:
    def carry(source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while piece := source.recv(1 << 16):
                sink.sendall(piece)
            sink.shutdown(socket.SHUT_WR)

    back = threading.Thread(target=carry, args=(other, one))
    back.start()
    carry(one, other)
    back.join()


def wheel() -> bytes:
    """``lent-package`` 1.0, for pip."""
    buffer = io.BytesIO()
    info = "lent_package-1.0.dist-info"
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("lent_package.py", "WHERE = 'a private index'\n")
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: lent-package\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return buffer.getvalue()


def module() -> bytes:
    """``@lent/module`` 1.0.0, for npm."""
    buffer = io.BytesIO()
    files = {
        "package.json": '{"name": "@lent/module", "version": "1.0.0"}',
        "index.js": "module.exports = 'lent'\n",
    }
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, text in files.items():
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(text)
            tar.addfile(member, io.BytesIO(text.encode()))
    return buffer.getvalue()


@contextmanager
def indexes() -> Iterator[int]:
    """pip's index below ``/simple``, npm's registry below ``/npm``; nobody is answered without a secret."""
    packed = module()
    integrity = "sha512-" + base64.b64encode(hashlib.sha512(packed).digest()).decode()

    class Index(Quiet):
        def do_GET(self) -> None:
            given, path = self.headers.get("Authorization"), self.path.rstrip("/").replace("%2f", "/")
            wanted = f"Bearer {NPM_TOKEN}" if path.startswith("/npm/") else basic(INDEX_PASSWORD)
            if given != wanted:
                self.say(401, WWW_Authenticate='Basic realm="index"')
            elif path == "/simple/lent-package":
                self.say(200, b'<a href="lent_package-1.0-py3-none-any.whl">it</a>', Content_Type="text/html")
            elif path.endswith(".whl"):
                self.say(200, wheel())
            elif path == "/npm/@lent/module":
                tarball = f"http://{self.headers['Host']}/npm/@lent/module/-/module-1.0.0.tgz"
                version = {
                    "name": "@lent/module",
                    "version": "1.0.0",
                    "dist": {"tarball": tarball, "integrity": integrity},
                }
                told = {
                    "name": "@lent/module",
                    "dist-tags": {"latest": "1.0.0"},
                    "versions": {"1.0.0": version},
                }
                self.say(200, json.dumps(told).encode(), Content_Type="application/json")
            elif path.endswith(".tgz"):
                self.say(200, packed)
            else:
                self.say(404)

    with serving(Index) as port:
        yield port
