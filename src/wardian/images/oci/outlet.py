"""The one way out of a program that fetches for strangers: a proxy that decides where it leads.

The program runs in a network namespace of its own, in which there is nothing but its loopback, and on that
this proxy. The proxy's other side is in the host's network: it resolves a name once, asks whether the address
may be reached, and dials that very address. So a redirect, a token service, or a name that means something
else the second time lead nowhere that the first request may not. Registries that the operator lists are
reached wherever they are. Where the host itself is behind a proxy, that one is asked to go on.
"""

from __future__ import annotations

import base64
import ctypes
import fcntl
import os
import re
import socket
import struct
import subprocess
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from ipaddress import ip_address
from threading import Event, Thread
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

from wardian.model.errors import Forbidden, Unavailable

HEAD_MAX = 16 << 10
CONNECT_S = 15.0
LOOK_S = 0.2
"""How often we look whether we are to stop."""

_CLONE_NEWNET = 0x40000000
_SIOCSIFFLAGS, _IFF_UP = 0x8914, 1
_REQUEST = re.compile(rb"CONNECT (?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9._-]+)):(\d{1,5}) HTTP/1\.[01]\r\n")
_PROXY_NAMES = frozenset({"http_proxy", "https_proxy", "all_proxy", "no_proxy"})
_PIECE = 1 << 16

Allows = Callable[[str, int], bool]
"""Whether an address and a port may be reached on a stranger's word."""


class Denied(Exception):
    """A destination that may not be reached."""


@dataclass(frozen=True, slots=True)
class Outlet:
    """Where programs that fetch may get to. ``private`` are ``host:port``, whatever these resolve to."""

    allows: Allows
    private: frozenset[str] = frozenset()

    def check(self, host: str, port: int) -> None:
        """Raise :class:`Forbidden` for a registry that may not be reached. One that is not found may."""
        try:
            self._choose(host, port, _resolve(host, port))
        except Denied:
            raise _refusal(f"the registry {host}:{port} is") from None
        except socket.gaierror:
            return  # whoever asks for it says it better, and the host's proxy may know it

    def run(
        self, command: Sequence[str], environment: Mapping[str, str], *, stop: Event | None = None
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a command to its end, or until it is to ``stop``. Blocks.

        Raises :class:`Forbidden` when it failed after having been led where it may not go.
        """
        room = _Room(command, environment, self._inner_ports())
        Thread(target=room.run, name="fetching", daemon=True).start()
        doors = _Doors(self, room.listeners.result())
        try:
            while not room.done.done():
                with suppress(TimeoutError):
                    room.done.exception(LOOK_S)
                if stop is not None and stop.is_set():
                    room.kill()
            done = room.done.result()
        finally:
            room.kill()
            doors.close()
        if done.returncode and doors.refused:
            raise _refusal(f"it leads to {doors.refused[-1]}, which is")
        return done

    def _inner_ports(self) -> Sequence[int]:
        """The private registries on the host's loopback: programs ask no proxy for what is on one."""
        found = (registry.rpartition(":") for registry in self.private)
        return sorted({int(port) for host, _, port in found if is_loopback(host)})

    def _choose(self, host: str, port: int, addresses: Sequence[str]) -> str:
        """The first address that may be reached. Raises :class:`Denied`."""
        for address in addresses:
            if f"{host}:{port}" in self.private or self.allows(address, port):
                return address
        raise Denied

    def dial(self, host: str, port: int) -> socket.socket:
        """A connection, if there may be one. Raises :class:`Denied`, or OSError."""
        upstream = None if proxy_bypass(host) else getproxies().get("https") or getproxies().get("all")
        try:
            address = self._choose(host, port, _resolve(host, port))
        except socket.gaierror:
            if not upstream:
                raise
        else:
            if not upstream:
                return socket.create_connection((address, port), CONNECT_S)
        return _through(upstream, f"{host}:{port}")


NOWHERE = Outlet(lambda address, port: False)
"""Of a server that fetches nothing."""


def _refusal(words: str) -> Forbidden:
    return Forbidden(
        f"{words} not on the public internet",
        code="image_registry",
        hint="whoever runs this server may list it in WARDIAN_PRIVATE_REGISTRIES",
    )


@dataclass(slots=True)
class _Room:
    """A program, and the network namespace it runs in.

    ``listeners`` are the proxy's, and one for each of ``ports``. A thread of its own makes the namespace: it
    cannot leave it any more.
    """

    command: Sequence[str]
    environment: Mapping[str, str]
    ports: Sequence[int]
    listeners: Future[Sequence[socket.socket]] = field(default_factory=Future)
    done: Future[subprocess.CompletedProcess[bytes]] = field(default_factory=Future)
    _process: subprocess.Popen[bytes] | None = None

    def run(self) -> None:
        """Make the room, and run the program in it."""
        try:
            listeners = self._open()
        except OSError as error:
            failure = Unavailable(
                f"no network of its own can be made for a program that fetches: {error}",
                code="no_network_namespace",
                hint="run the server as root",
            )
            self.listeners.set_exception(failure)
            return
        self.listeners.set_result(listeners)
        try:
            self.done.set_result(self._run(listeners[0].getsockname()[1]))
        except BaseException as error:
            self.done.set_exception(error)

    def _open(self) -> Sequence[socket.socket]:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.unshare(_CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
            fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack("16sh22x", b"lo", _IFF_UP))
        return [socket.create_server(("127.0.0.1", port)) for port in (0, *self.ports)]

    def _run(self, port: int) -> subprocess.CompletedProcess[bytes]:
        proxy = f"http://127.0.0.1:{port}"
        kept = {name: each for name, each in self.environment.items() if name.lower() not in _PROXY_NAMES}
        with subprocess.Popen(
            self.command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**kept, "HTTP_PROXY": proxy, "HTTPS_PROXY": proxy},
        ) as self._process:
            out, err = self._process.communicate()
        return subprocess.CompletedProcess(self.command, self._process.returncode, out, err)

    def kill(self) -> None:
        """End the program, if it runs."""
        if self._process is not None:
            self._process.kill()


class _Doors:
    """The proxy, and the ways to registries on the host's loopback. A thread for each connection."""

    def __init__(self, outlet: Outlet, listeners: Sequence[socket.socket]) -> None:
        self.refused: list[str] = []
        self._outlet = outlet
        self._open: set[socket.socket] = set(listeners)
        self._threads: list[Thread] = []
        for number, listener in enumerate(listeners):
            port = listener.getsockname()[1]
            handle = partial(self._forward, port) if number else self._connect
            self._begin(partial(self._accept, listener, handle))

    def close(self) -> None:
        """End every connection."""
        for each in list(self._open):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)  # wakes whoever waits for it, who closes it
        for thread in self._threads:
            thread.join(LOOK_S)

    def _begin(self, target: Callable[[], None]) -> None:
        thread = Thread(target=target, name="outlet", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self, listener: socket.socket, handle: Callable[[socket.socket], None]) -> None:
        with listener, suppress(OSError):
            while True:
                self._begin(partial(self._serve, listener.accept()[0], handle))

    def _serve(self, connection: socket.socket, handle: Callable[[socket.socket], None]) -> None:
        self._open.add(connection)
        with connection, suppress(OSError):
            handle(connection)
        self._open.discard(connection)

    def _connect(self, connection: socket.socket) -> None:
        """One connection of the program's: where to, and then whatever it says."""
        request = _REQUEST.match(_head(connection))
        if request is None:
            connection.sendall(b"HTTP/1.1 405 Only CONNECT\r\n\r\n")
            return
        host, port = (request[1] or request[2]).decode(), int(request[3])
        try:
            there = self._outlet.dial(host, port)
        except Denied:
            self.refused.append(f"{host}:{port}")
            connection.sendall(b"HTTP/1.1 403 Not to be reached\r\n\r\n")
        except OSError:
            connection.sendall(b"HTTP/1.1 502 Not reached\r\n\r\n")
        else:
            connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            self._join(connection, there)

    def _forward(self, port: int, connection: socket.socket) -> None:
        self._join(connection, socket.create_connection(("127.0.0.1", port), CONNECT_S))

    def _join(self, here: socket.socket, there: socket.socket) -> None:
        """Carry bytes both ways until both have ended, or one is broken."""
        there.settimeout(None)
        self._open.add(there)
        with there:
            back = Thread(target=_carry, args=(there, here), name="outlet", daemon=True)
            back.start()
            _carry(here, there)
            back.join()
        self._open.discard(there)


def is_loopback(host: str) -> bool:
    """Whether a host's name says that it is this very host."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _resolve(host: str, port: int) -> Sequence[str]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[4][0]) for address in found))


def _carry(source: socket.socket, sink: socket.socket) -> None:
    try:
        while piece := source.recv(_PIECE):
            sink.sendall(piece)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        for each in (source, sink):  # neither is of any use without the other
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)


def _head(connection: socket.socket) -> bytes:
    """The head of an HTTP message. OSError when it does not come, or is too long."""
    head = bytearray()
    while not head.endswith(b"\r\n\r\n"):
        if not (piece := connection.recv(1)) or len(head) > HEAD_MAX:
            raise OSError("no HTTP")
        head += piece
    return bytes(head)


def _through(proxy: str, asked: str) -> socket.socket:
    """A connection that the host's proxy makes. OSError when it does not."""
    parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    if parts.scheme != "http":
        raise OSError(f"the host's proxy is not asked over {parts.scheme}, only over HTTP")
    connection = socket.create_connection((parts.hostname, parts.port or 80), CONNECT_S)
    try:
        pair = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}".encode()
        who = f"Proxy-Authorization: Basic {base64.b64encode(pair).decode()}\r\n" if parts.username else ""
        connection.sendall(f"CONNECT {asked} HTTP/1.1\r\nHost: {asked}\r\n{who}\r\n".encode())
        if _head(connection).split(b" ", 2)[1:2] != [b"200"]:
            raise OSError(f"the host's proxy does not connect to {asked}")
    except BaseException:
        connection.close()
        raise
    return connection
