"""DIAL, CONNECT and RESOLVE, against the sanitized agent."""

from __future__ import annotations

import errno
import socket
import threading
from collections.abc import Callable, Iterator

import pytest
from tests.guest.conftest import Agent
from tests.guest.wire import (
    CLOSE,
    CONNECT,
    DATA,
    DIAL,
    END,
    EOF,
    FULL_WINDOW,
    OPEN,
    REPLY,
    RESOLVE,
    WINDOW,
    Frame,
    Wire,
    field,
    number,
    u16,
    u32,
)


def listen(family: int = socket.AF_INET) -> socket.socket:
    server = socket.socket(family)
    server.bind(("::1" if family == socket.AF_INET6 else "127.0.0.1", 0))
    server.listen(64)
    server.settimeout(20)
    return server


def dial(wire: Wire, server: socket.socket) -> tuple[int, socket.socket]:
    stream = wire.open(DIAL, field(6, u16(server.getsockname()[1])))
    assert wire.on(stream, REPLY).errno == 0
    connection, _ = server.accept()
    connection.settimeout(20)
    return stream, connection


@pytest.fixture
def server() -> Iterator[socket.socket]:
    with listen() as listening:
        yield listening


def test_dial_both_ways(wire: Wire, server: socket.socket) -> None:
    stream, connection = dial(wire, server)
    with connection:
        wire.send(DATA, stream, b"question")
        assert connection.recv(100) == b"question"
        connection.sendall(b"answer")
        assert wire.on(stream, DATA).payload == b"answer"
        wire.send(EOF, stream)
        assert connection.recv(100) == b""
        connection.sendall(b"last")
    assert wire.on(stream, DATA).payload == b"last"
    assert wire.on(stream, EOF)
    assert wire.on(stream, END).errno == 0


def test_dial_ipv6_only(wire: Wire) -> None:
    with listen(socket.AF_INET6) as server:
        stream, connection = dial(wire, server)
        connection.close()
        assert wire.on(stream, EOF)
        wire.send(CLOSE, stream)
        assert wire.on(stream, END)


def test_dial_a_closed_port(wire: Wire) -> None:
    with listen() as server:
        port = server.getsockname()[1]
    assert wire.ask(DIAL, field(6, u16(port))).errno == errno.ECONNREFUSED
    assert wire.ask(DIAL, field(6, u16(0))).errno == errno.EINVAL


def test_dial_close_closes(wire: Wire, server: socket.socket) -> None:
    stream, connection = dial(wire, server)
    with connection:
        wire.send(CLOSE, stream)
        assert wire.on(stream, END)
        assert connection.recv(100) == b""


def test_dial_reset(wire: Wire, server: socket.socket) -> None:
    stream, connection = dial(wire, server)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    connection.close()
    assert wire.on(stream, END).errno == errno.ECONNRESET


def test_dial_bulk_both_ways(wire: Wire, server: socket.socket) -> None:
    stream, connection = dial(wire, server)
    total = 8_000_000

    def echo() -> None:
        while data := connection.recv(65536):
            connection.sendall(data)
        connection.close()

    thread = threading.Thread(target=echo)
    thread.start()
    sent = received = 0
    window = FULL_WINDOW
    while received < total:
        while window and sent < total:
            size = min(window, 65536, total - sent)
            wire.send(DATA, stream, b"e" * size)
            window -= size
            sent += size
        frame = wire.on(stream, DATA, WINDOW)
        if frame.type == WINDOW:
            window += number(frame.payload)
        else:
            received += len(frame.payload)
            wire.send(WINDOW, stream, u32(len(frame.payload)))
    wire.send(EOF, stream)
    assert wire.on(stream, END).errno == 0
    thread.join()


def test_dial_into_a_reader_that_does_not_read(wire: Wire, server: socket.socket) -> None:
    stream, connection = dial(wire, server)
    with connection:
        granted, sent = FULL_WINDOW, 0
        while granted:
            wire.send(DATA, stream, b"x" * min(granted, 65536))
            sent += min(granted, 65536)
            granted -= min(granted, 65536)
            while not granted and not wire.quiet(0.3):
                granted += number(wire.on(stream, WINDOW).payload)
        assert wire.run("/bin/echo", "alive")[0] == {1: b"alive\n"}
        wire.send(EOF, stream)
        received = 0
        while data := connection.recv(1 << 20):
            received += len(data)
        assert received == sent


# ---- outwards ----


@pytest.fixture
def outward(start_agent: Callable[..., Agent]) -> tuple[Agent, tuple[str, int], tuple[str, int]]:
    """An agent with its two listeners, and where they are."""
    redirect = listen()
    dns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    dns.bind(("0.0.0.0", 0))
    arguments = ("--redirect", str(redirect.fileno()), "--dns", str(dns.fileno()))
    redirect.setblocking(False)
    agent = start_agent(*arguments, pass_fds=(redirect.fileno(), dns.fileno()))
    agent.listeners += [redirect, dns]
    agent.wire.attach()
    return agent, redirect.getsockname(), ("127.0.0.1", dns.getsockname()[1])


def asked(wire: Wire, op: int) -> Frame:
    frame = wire.expect(lambda candidate: candidate.type == OPEN)
    assert frame.payload[0] == op
    assert frame.stream % 2 == 0
    return frame


def test_connect(outward: tuple[Agent, tuple[str, int], tuple[str, int]]) -> None:
    agent, address, _ = outward
    wire = agent.wire
    with socket.create_connection(address, 20) as client:
        client.sendall(b"early")
        frame = asked(wire, CONNECT)
        assert frame.values[6] == socket.inet_aton("127.0.0.1")
        assert number(frame.values[7]) == address[1]
        assert wire.quiet(0.1), "nothing is read before the host agrees"
        wire.send(REPLY, frame.stream, u32(0))
        assert wire.on(frame.stream, DATA).payload == b"early"
        wire.send(DATA, frame.stream, b"page")
        assert client.recv(100) == b"page"
        client.shutdown(socket.SHUT_WR)
        assert wire.on(frame.stream, EOF)
        wire.send(DATA, frame.stream, b"x" * 60_000)
        wire.send(EOF, frame.stream)
        wire.send(END, frame.stream, u32(0))
        received = b""
        while data := client.recv(65536):
            received += data
        assert received == b"x" * 60_000


def test_connect_refused_is_a_reset(outward: tuple[Agent, tuple[str, int], tuple[str, int]]) -> None:
    agent, address, _ = outward
    with socket.create_connection(address, 20) as client:
        frame = asked(agent.wire, CONNECT)
        agent.wire.send(REPLY, frame.stream, u32(errno.ECONNREFUSED), flags=1)
        with pytest.raises(ConnectionResetError):
            client.recv(1)
    with socket.create_connection(address, 20) as client:
        frame = asked(agent.wire, CONNECT)
        agent.wire.send(REPLY, frame.stream, u32(0))
        agent.wire.send(END, frame.stream, u32(errno.ECONNRESET))
        with pytest.raises(ConnectionResetError):
            client.recv(1)


def test_connect_given_up_by_the_guest(outward: tuple[Agent, tuple[str, int], tuple[str, int]]) -> None:
    agent, address, _ = outward
    with socket.create_connection(address, 20) as client:
        frame = asked(agent.wire, CONNECT)
        agent.wire.send(REPLY, frame.stream, u32(0))
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    assert agent.wire.on(frame.stream, CLOSE)
    agent.wire.send(END, frame.stream, u32(0))
    assert agent.wire.run("/bin/true")[1] == 0


def test_tunnels_do_not_survive_attach(outward: tuple[Agent, tuple[str, int], tuple[str, int]]) -> None:
    agent, address, _ = outward
    with socket.create_connection(address, 20) as client:
        frame = asked(agent.wire, CONNECT)
        agent.wire.send(REPLY, frame.stream, u32(0))
        agent.wire.attach(2)
        with pytest.raises(ConnectionResetError):
            client.recv(1)


def test_resolve(outward: tuple[Agent, tuple[str, int], tuple[str, int]]) -> None:
    agent, _, address = outward
    query = b"\x12\x34\x01\x00" + b"\0" * 8 + b"question"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(20)
        client.connect(("127.0.0.7", address[1]))  # so that only an answer from there arrives
        client.send(query)
        frame = asked(agent.wire, RESOLVE)
        assert frame.values[6] == query
        agent.wire.send(REPLY, frame.stream, u32(0) + field(6, b"\x12\x34answer"), flags=1)
        assert client.recv(1000) == b"\x12\x34answer"
        client.send(query)
        frame = asked(agent.wire, RESOLVE)
        agent.wire.send(REPLY, frame.stream, u32(errno.EPERM), flags=1)
        failed = client.recv(1000)
        assert failed[:2] == b"\x12\x34"
        assert failed[2] & 0x80
        assert failed[3] & 15 == 2
        client.send(b"short")
        for _ in range(300):  # more than are remembered
            client.send(query)
            asked(agent.wire, RESOLVE)
    assert agent.wire.run("/bin/true")[1] == 0
