"""Hosts that want credentials, on addresses of this host that nothing else uses: they answer what they were
asked, count it, and speak as the well-known ones do.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import socket
import socketserver
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.acceptance.upstreams import NETWORK, World, addresses

HOSTS = (
    *("api.test", "llm.test", "other.test", "idp.test", "bucket.test"),
    *("a.wild.test", "deep.a.wild.test", "wild.test", "tamewild.test", "a.wild.test.evil.test"),
)
ACCESS_TOKEN, REFRESH_TOKEN = "at-5c1f-first-access", "rt-9a7d-next-refresh"
GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"

__all__ = ["HOSTS", "NETWORK", "Upstreams", "upstreams"]


@dataclass
class Upstreams(World):
    """``seen``: every request, as (method, target, headers, body)."""

    seen: list[tuple[str, str, dict[str, str], bytes]] = field(default_factory=list)
    repositories: Path = Path()  # bare, at /git/
    drip: threading.Event = field(default_factory=threading.Event)  # /drip waits for it, /drip/on sets it
    hold: threading.Event = field(default_factory=threading.Event)  # /slow waits for it
    reached_slow: threading.Event = field(default_factory=threading.Event)

    def zone(self) -> dict[str, str]:
        return dict.fromkeys(HOSTS, self.home) | {"false.test": self.home, "inside.test": "10.1.2.3"}

    def requests(self, path: str) -> list[tuple[str, str, dict[str, str], bytes]]:
        return [each for each in self.seen if each[1].partition("?")[0] == path]


def _handler(world: Upstreams) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            return None

        def _body(self) -> bytes:
            if self.headers.get("transfer-encoding") == "chunked":
                body = b""
                while size := int(self.rfile.readline(), 16):
                    body += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
                return body
            return self.rfile.read(int(self.headers.get("content-length") or 0))

        def _any(self) -> None:
            headers = {name.lower(): value for name, value in self.headers.items()}
            if "websocket" in headers.get("upgrade", ""):
                world.seen.append((self.command, self.path, headers, b""))
                self._websocket(headers)
                return
            body = self._body()
            world.seen.append((self.command, self.path, headers, body))
            path = self.path.partition("?")[0]
            if path == "/v1/chat/completions":
                self._chat(json.loads(body))
            elif path == "/v1/messages":
                self._messages(json.loads(body))
            elif path == "/token":
                told = {"access_token": ACCESS_TOKEN, "refresh_token": REFRESH_TOKEN, "expires_in": 3600}
                self._json(told)
            elif path.startswith("/git/"):
                self._git(path.removeprefix("/git"), headers, body)
            elif path.startswith("/bucket/"):
                self._send(200, b"" if self.command == "PUT" else b"an object", {"ETag": '"0"'})
            elif path == "/drip":
                world.drip.clear()
                self._events([("", "first"), ("", "second")], between=lambda: world.drip.wait(20))
            elif path == "/drip/on":
                world.drip.set()
                self._json({})
            elif path == "/cookies":
                self._json({"ok": True}, {"Set-Cookie": "session=fresh-session-token"})
            elif path == "/redirect":
                self._send(302, b"", {"Location": "https://other.test/echo"})
            elif path == "/big":
                self._send(200, b"x" * (1 << 20), {})
            elif path == "/slow":
                world.reached_slow.set()
                world.hold.wait(30)
                self._json({"slow": True})
            else:
                self._json({"path": self.path, "headers": headers, "body": body.decode(errors="replace")})

        do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = _any

        def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def _json(self, told: Any, headers: dict[str, str] | None = None) -> None:
            kind = {"Content-Type": "application/json"}
            self._send(200, json.dumps(told).encode(), kind | (headers or {}))

        def _git(self, path: str, headers: dict[str, str], body: bytes) -> None:
            """What git's own server says to whoever shows a credential."""
            if "authorization" not in headers:
                self._send(401, b"", {"WWW-Authenticate": 'Basic realm="git"'})
                return
            environment = {
                "PATH": os.environ["PATH"],
                "GIT_PROJECT_ROOT": str(world.repositories),
                "GIT_HTTP_EXPORT_ALL": "1",
                "GIT_PROTOCOL": headers.get("git-protocol", ""),
                "HTTP_CONTENT_ENCODING": headers.get("content-encoding", ""),
                "PATH_INFO": path,
                "REQUEST_METHOD": self.command,
                "QUERY_STRING": self.path.partition("?")[2],
                "CONTENT_TYPE": headers.get("content-type", ""),
                "CONTENT_LENGTH": str(len(body)),
                "REMOTE_USER": "somebody",
            }
            done = subprocess.run(
                ["git", "-c", "safe.directory=*", "http-backend"],
                input=body,
                capture_output=True,
                env=environment | {"GIT_CONFIG_NOSYSTEM": "1"},
                check=True,
            )
            head, _, content = done.stdout.partition(b"\r\n\r\n")
            told = dict(line.split(": ", 1) for line in head.decode().splitlines())
            self._send(int(told.pop("Status", "200").split()[0]), content, told)

        def _events(
            self, events: list[tuple[str, Any]], between: Callable[[], object] = lambda: time.sleep(0.01)
        ) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for name, event in events:
                text = event if isinstance(event, str) else json.dumps(event)
                line = (f"event: {name}\n" if name else "") + f"data: {text}\n\n"
                self.wfile.write(b"%x\r\n%s\r\n" % (len(line), line.encode()))
                self.wfile.flush()
                between()
            self.wfile.write(b"0\r\n\r\n")

        def _chat(self, asked: dict[str, Any]) -> None:
            usage = {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}
            head = {"id": "c1", "created": 1, "model": asked["model"]}
            if not asked.get("stream"):
                message = {"role": "assistant", "content": "hello from the model"}
                choice = {"index": 0, "message": message, "finish_reason": "stop"}
                self._json({**head, "object": "chat.completion", "choices": [choice], "usage": usage})
                return
            chunks: list[tuple[str, Any]] = [
                (
                    "",
                    {
                        **head,
                        "object": "chat.completion.chunk",
                        "choices": [{"index": 0, "delta": {"content": word}, "finish_reason": None}],
                    },
                )
                for word in ("one ", "two ", "three")
            ]
            last = {**head, "object": "chat.completion.chunk", "choices": [], "usage": usage}
            self._events([*chunks, ("", last), ("", "[DONE]")])

        def _messages(self, asked: dict[str, Any]) -> None:
            told = {
                "id": "m1",
                "type": "message",
                "role": "assistant",
                "model": asked["model"],
                "content": [{"type": "text", "text": "hello from the other model"}],
                "stop_reason": "end_turn",
                "stop_sequence": None,
                "usage": {"input_tokens": 5, "output_tokens": 3},
            }
            if not asked.get("stream"):
                self._json(told)
                return
            self._events(
                [
                    ("message_start", {"type": "message_start", "message": {**told, "content": []}}),
                    (
                        "content_block_start",
                        {
                            "type": "content_block_start",
                            "index": 0,
                            "content_block": {"type": "text", "text": ""},
                        },
                    ),
                    (
                        "content_block_delta",
                        {
                            "type": "content_block_delta",
                            "index": 0,
                            "delta": {"type": "text_delta", "text": "streamed"},
                        },
                    ),
                    ("content_block_stop", {"type": "content_block_stop", "index": 0}),
                    (
                        "message_delta",
                        {
                            "type": "message_delta",
                            "delta": {"stop_reason": "end_turn", "stop_sequence": None},
                            "usage": {"output_tokens": 9},
                        },
                    ),
                    ("message_stop", {"type": "message_stop"}),
                ]
            )

        def _websocket(self, headers: dict[str, str]) -> None:
            """Says every unfragmented short text message again."""
            key = headers["sec-websocket-key"].encode()
            accept = base64.b64encode(hashlib.sha1(key + GUID).digest()).decode()
            self.send_response(101)
            self.send_header("Upgrade", "websocket")
            self.send_header("Connection", "Upgrade")
            self.send_header("Sec-WebSocket-Accept", accept)
            self.end_headers()
            while len(head := self.rfile.read(2)) == 2 and head[0] & 0x0F == 1:
                size = head[1] & 0x7F
                mask, data = self.rfile.read(4), self.rfile.read(size)
                text = bytes(byte ^ mask[i % 4] for i, byte in enumerate(data))
                self.wfile.write(bytes([0x81, size]) + text)
                self.wfile.flush()
            self.close_connection = True

    return Handler


class _Tls(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    context: ssl.SSLContext

    def finish_request(self, request: Any, client_address: Any) -> None:
        with suppress(OSError), self.context.wrap_socket(request, server_side=True) as wrapped:
            super().finish_request(wrapped, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        return None


class _Plain(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        return None


@contextmanager
def upstreams(directory: Path) -> Iterator[Upstreams]:
    """All of them, serving. ``certificate`` is what to trust."""
    key, certificate = directory / "up-key.pem", directory / "up-cert.pem"
    names = ",".join(f"DNS:{host}" for host in HOSTS)
    subprocess.run(
        f"openssl req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=upstreams "
        f"-addext subjectAltName={names} -keyout {key} -out {certificate}".split(),
        check=True,
        capture_output=True,
    )
    with ExitStack() as stack:
        name_server, home = stack.enter_context(addresses(2))
        world = Upstreams(name_server, home, home, home, certificate, repositories=directory / "git")
        new_repository(world.repositories / "app.git")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        tls = _Tls((home, 443), _handler(world))
        tls.context = context
        servers: list[socketserver.BaseServer] = [
            tls,
            _Plain((home, 80), _handler(world)),
            socketserver.UDPServer((name_server, 53), _names(world)),
        ]
        for server in servers:
            threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
            stack.callback(server.server_close)
            stack.callback(server.shutdown)
        stack.callback(world.hold.set)
        yield world


def new_repository(path: Path) -> None:
    """With one commit, and open to pushes."""
    subprocess.run(
        f"""set -e
git init -q --bare -b main {path}
git -C {path} config http.receivepack true
tree=$(printf 'hello\\n' | git -C {path} hash-object -w --stdin | xargs printf '100644 blob %s\\tREADME\\n' \\
    | git -C {path} mktree)
git -C {path} update-ref refs/heads/main \\
    "$(git -C {path} -c user.name=a -c user.email=a@b.test commit-tree -m first "$tree")"
""",
        shell=True,
        check=True,
    )


def _names(world: Upstreams) -> type[socketserver.BaseRequestHandler]:
    import dns.message
    import dns.rcode
    import dns.rrset

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            packet, sock = self.request
            query = dns.message.from_wire(packet)
            question, response = query.question[0], dns.message.make_response(query)
            address = world.zone().get(question.name.to_text(omit_final_dot=True).lower())
            if address is None:
                response.set_rcode(dns.rcode.NXDOMAIN)
            elif question.rdtype == 1:
                response.answer.append(dns.rrset.from_text(question.name, 5, "IN", "A", address))
            with suppress(OSError):
                assert isinstance(sock, socket.socket)
                sock.sendto(response.to_wire(), self.client_address)

    return Handler
