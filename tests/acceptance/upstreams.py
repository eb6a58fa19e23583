"""A small world to connect to, on addresses of this host that nothing else uses: name server, web servers
with and without TLS, a server that speaks first, a SOCKS5 proxy.
"""

from __future__ import annotations

import socket
import socketserver
import ssl
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import dns.flags
import dns.message
import dns.rcode
import dns.rrset

NETWORK = "198.51.100.0/24"  # for documentation: nobody is there
GOOD, OTHER, DENIED = "good.test", "also.good.test", "evil.test"
CERTIFY = (
    "openssl req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=good.test "
    "-addext subjectAltName=DNS:good.test"
)
USER, PASSWORD = "traveller", "open-sesame-7133"


@contextmanager
def addresses(count: int) -> Iterator[list[str]]:
    """So many addresses of our own on the loopback device, for as long as the context lasts."""
    mine: list[str] = []
    try:
        for last in range(10, 250):
            address = f"198.51.100.{last}"
            added = subprocess.run(["ip", "addr", "add", f"{address}/32", "dev", "lo"], capture_output=True)
            if added.returncode == 0:
                mine.append(address)
            if len(mine) == count:
                break
        yield mine
    finally:
        for address in mine:
            subprocess.run(["ip", "addr", "del", f"{address}/32", "dev", "lo"], check=True)


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False

    def __init__(self, address: tuple[str, int], serve: Callable[[socket.socket], None]) -> None:
        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                with suppress(OSError):
                    serve(self.request)

        super().__init__(address, Handler)


@dataclass
class World:
    """``home`` is where the good names are, ``elsewhere`` what no rule names; both serve the same."""

    names: str
    home: str
    elsewhere: str
    proxy: str
    certificate: Path
    asked: list[str] = field(default_factory=list)  # names the name server was asked for
    proxied: list[tuple[str, int]] = field(default_factory=list)
    reached: list[str] = field(default_factory=list)  # addresses that saw a connection

    def zone(self) -> dict[str, str]:
        return {
            GOOD: self.home,
            OTHER: self.home,
            DENIED: self.elsewhere,
            "inward.good.test": "10.0.0.1",
            "big.good.test": self.home,
        }

    # ── what is served

    def answer(self, packet: bytes, *, tcp: bool) -> bytes:
        query = dns.message.from_wire(packet)
        question = query.question[0]
        name = question.name.to_text(omit_final_dot=True).lower()
        self.asked.append(name)
        response = dns.message.make_response(query)
        address = self.zone().get(name)
        if name == "big.good.test" and not tcp:
            response.flags |= dns.flags.TC
        elif address is None:
            response.set_rcode(dns.rcode.NXDOMAIN)
        elif question.rdtype == 1:
            response.answer.append(dns.rrset.from_text(question.name, 5, "IN", "A", address))
        return response.to_wire()

    def name_handler(self) -> type[socketserver.BaseRequestHandler]:
        answer = self.answer

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                packet, sock = self.request
                sock.sendto(answer(packet, tcp=False), self.client_address)

        return Handler

    def serve_names_over_tcp(self, sock: socket.socket) -> None:
        (size,) = struct.unpack("!H", sock.recv(2, socket.MSG_WAITALL))
        answer = self.answer(sock.recv(size, socket.MSG_WAITALL), tcp=True)
        sock.sendall(struct.pack("!H", len(answer)) + answer)

    def serve_web(self, sock: socket.socket) -> None:
        """Answers every request with the address that was reached and the Host that was asked for."""
        at = sock.getsockname()[0]
        self.reached.append(at)
        file = sock.makefile("rb")
        while line := file.readline():
            host = ""
            while (line := file.readline().strip()) != b"":
                if line.lower().startswith(b"host:"):
                    host = line[5:].strip().decode()
            body = f"{at} {host}\n".encode()
            sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))

    def serve_tls(self, sock: socket.socket) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificate)
        with context.wrap_socket(sock, server_side=True) as wrapped:
            self.serve_web(wrapped)

    def serve_banner(self, sock: socket.socket) -> None:
        """Speaks first, then says every line again."""
        sock.sendall(b"hello\n")
        for line in sock.makefile("rb"):
            sock.sendall(line)

    def serve_socks(self, sock: socket.socket) -> None:
        def exactly(size: int) -> bytes:
            return sock.recv(size, socket.MSG_WAITALL)

        exactly(exactly(2)[1])
        sock.sendall(b"\5\2")
        user = exactly(exactly(2)[1])
        password = exactly(exactly(1)[0])
        good = (user.decode(), password.decode()) == (USER, PASSWORD)
        sock.sendall(b"\1\0" if good else b"\1\1")
        if not good:
            return
        kind = exactly(4)[3]
        host = socket.inet_ntoa(exactly(4)) if kind == 1 else exactly(exactly(1)[0]).decode()
        (port,) = struct.unpack("!H", exactly(2))
        self.proxied.append((host, port))
        with socket.create_connection((self.zone().get(host, host), port)) as far:
            sock.sendall(b"\5\0\0\1\0\0\0\0\0\0")
            back = threading.Thread(target=_pump, args=(far, sock), daemon=True)
            back.start()
            _pump(sock, far)
            back.join()


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)


@contextmanager
def world(directory: Path) -> Iterator[World]:
    """All of it, serving."""
    key, certificate, both = directory / "key.pem", directory / "cert.pem", directory / "both.pem"
    subprocess.run(
        [*CERTIFY.split(), "-keyout", key, "-out", certificate],
        check=True,
        capture_output=True,
    )
    both.write_bytes(key.read_bytes() + certificate.read_bytes())
    with ExitStack() as stack:
        names, home, elsewhere, proxy = stack.enter_context(addresses(4))
        made = World(names, home, elsewhere, proxy, both)
        datagrams = socketserver.UDPServer((names, 53), made.name_handler())
        serves: list[tuple[str, int, Callable[[socket.socket], None]]] = [
            (names, 53, made.serve_names_over_tcp),
            (proxy, 1080, made.serve_socks),
        ]
        for address in (home, elsewhere):
            serves += [
                (address, 80, made.serve_web),
                (address, 443, made.serve_tls),
                (address, 2222, made.serve_banner),
            ]
        servers: list[socketserver.BaseServer] = [datagrams]
        servers += [_Server((address, port), serve) for address, port, serve in serves]
        for server in servers:
            threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
            stack.callback(server.server_close)
            stack.callback(server.shutdown)
        yield made
