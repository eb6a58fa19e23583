"""The host's side and the real agent together, without a machine around them."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
from tests.guest.peer import Native, native, output

from wardian.guest.guest import Exit, Output, ProcessConfig, Tunnel, WatchEvent
from wardian.model.errors import Conflict, Invalid, NotFound, Unavailable

MIB = 1 << 20


@pytest.fixture
async def agent(tmp_path: Path) -> AsyncIterator[Native]:
    async with native(tmp_path) as agent:
        yield agent


def sh(script: str, **envs: str) -> ProcessConfig:
    return ProcessConfig("/bin/sh", ("-c", script), envs, None)


async def chunks(*pieces: bytes) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


async def contents(agent: Native, path: str, **span: int) -> bytes:
    _, reader = await agent.guest.read(path, offset=span.get("offset", 0), length=span.get("length"))
    return b"".join([chunk async for chunk in reader])


# -- processes


async def test_a_command_tells_its_output_by_channel_and_its_end(agent: Native) -> None:
    process = await agent.guest.exec(sh("echo out; echo err >&2; exit 3"))
    events = [event async for event in process.subscribe()]
    assert sorted(event.data for event in events[:-1] if isinstance(event, Output)) == [b"err\n", b"out\n"]
    assert events[-1] == process.exit == Exit(3, True, "exit status 3")


async def test_the_environment_and_the_directory_are_as_asked(agent: Native) -> None:
    config = ProcessConfig("/bin/sh", ("-c", 'pwd; echo "$A $B $HOME"'), {"B": "own"}, "/usr")
    process = await agent.guest.exec(config, env={"A": "shared", "B": "shared"})
    assert (await output(process))[0].decode() == f"/usr\nshared own {agent.home}\n"
    assert (await agent.sh("pwd"))[0].decode() == f"{agent.home}\n"


async def test_standard_input_reaches_the_process_and_its_end_too(agent: Native) -> None:
    process = await agent.guest.exec(ProcessConfig("/bin/cat", (), {}, None), stdin=True)
    events = process.subscribe()
    await process.write(b"Hello, World!")
    assert await anext(events) == Output("stdout", b"Hello, World!")
    await process.close_stdin()
    assert await anext(events) == Exit(0, True, "exit status 0")


async def test_without_standard_input_there_is_nothing_to_read(agent: Native) -> None:
    assert await agent.sh("cat") == (b"", Exit(0, True, "exit status 0"))


async def test_a_terminal_has_a_size_and_ends_like_one(agent: Native) -> None:
    process = await agent.guest.exec(sh("stty size; read x; stty size; echo $x"), pty=(80, 24))
    events = process.subscribe()
    assert process.pty
    first = await anext(events)
    assert first == Output("pty", b"24 80\r\n")
    await process.resize(100, 30)
    await process.write(b"typed\n")
    rest = b"".join([event.data async for event in events if isinstance(event, Output)])
    assert rest.endswith(b"30 100\r\ntyped\r\n")


async def test_a_killed_process_is_gone_when_the_kill_returns(agent: Native) -> None:
    process = await agent.guest.exec(ProcessConfig("/bin/sleep", ("1000",), {}, None))
    os.kill(process.pid, 0)
    await process.signal(signal.SIGKILL)
    with pytest.raises(ProcessLookupError):
        os.kill(process.pid, 0)
    assert process.exit == Exit(-1, False, "signal: killed", 9)
    with pytest.raises(NotFound):
        await process.signal(signal.SIGTERM)


LEAVES_A_CHILD = """sh -c 'trap "" HUP; echo up $$; exec sleep 1000' & wait"""
"""It says so itself, once no hang-up can reach it."""


@pytest.mark.parametrize("signo", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("pty", [None, (80, 24)])
async def test_what_a_killed_process_leaves_behind_does_not_hold_up_its_end(
    agent: Native, signo: signal.Signals, pty: tuple[int, int] | None
) -> None:
    """Its children may go on and hold its pipes open. What it has said itself still arrives."""
    process = await agent.guest.exec(sh(LEAVES_A_CHILD), pty=pty)
    events = process.subscribe()
    first = await anext(events)
    assert isinstance(first, Output)
    await process.signal(signo)
    async with asyncio.timeout(10):
        rest = [event async for event in events]
    assert rest[-1].signal == signo  # type: ignore[union-attr]
    os.kill(int(first.data.split()[1]), signal.SIGKILL)  # it was alive


async def test_a_group_may_be_signalled_as_a_whole(agent: Native) -> None:
    process = await agent.guest.exec(sh("sleep 1000 & sleep 1000"))
    await process.signal(signal.SIGTERM, group=True)
    assert (await output(process))[1].signal == signal.SIGTERM


async def test_what_cannot_start_says_why(agent: Native) -> None:
    with pytest.raises(Invalid) as caught:
        await agent.guest.exec(ProcessConfig("/bin/true", (), {}, "nowhere"))
    assert (caught.value.code, caught.value.message) == (
        "cwd_not_found",
        f"cwd '{agent.home}/nowhere' does not exist",
    )
    with pytest.raises(Invalid) as caught:
        await agent.guest.exec(ProcessConfig("no-such-program", (), {}, None))
    assert caught.value.code == "not_executable"
    with pytest.raises(Invalid, match="invalid username: 'nobody-here'"):
        await agent.guest.exec(ProcessConfig("/bin/true", (), {}, None), user="nobody-here")


async def test_very_long_arguments_arrive_whole(agent: Native) -> None:
    config = ProcessConfig("/bin/echo", ("-n", *["x" * 100_000] * 8), {}, None)
    text, _ = await output(await agent.guest.exec(config))
    assert len(text) == 8 * 100_000 + 7


async def test_a_slow_consumer_slows_the_process_and_nobody_else(agent: Native) -> None:
    """``yes`` fills its pipe and both windows, and then stands still; others go on."""
    process = await agent.guest.exec(sh(f"head -c {8 * MIB} /dev/zero; echo done > {agent.home}/done"))
    events = process.subscribe()
    first = await anext(events)
    assert await agent.sh("echo quick") == (b"quick\n", Exit(0, True, "exit status 0"))
    assert await contents(agent, "/proc/self/stat")
    assert not (agent.home / "done").exists()
    got = len(first.data) if isinstance(first, Output) else 0
    async for event in events:
        got += len(event.data) if isinstance(event, Output) else 0
    assert got == 8 * MIB
    assert (agent.home / "done").exists()


async def test_a_process_nobody_listens_to_runs_on(agent: Native) -> None:
    process = await agent.guest.exec(sh(f"head -c {2 * MIB} /dev/zero; exit 5"))
    await process._stream.gone.wait()
    assert process.exit == Exit(5, True, "exit status 5")


# -- a new host


async def test_a_successor_finds_the_processes_and_hears_them(agent: Native) -> None:
    config = ProcessConfig("/bin/sh", ("-c", "while read x; do echo got $x; done"), {"K": "v"}, "/", tag="t")
    process = await agent.guest.exec(config, stdin=True)
    ended = await agent.guest.exec(sh("exit 7"))
    await output(ended)
    agent.guest._link._read(False)  # the first host is no more: it reads nothing from here on
    heir = await agent.successor()
    try:
        found = heir.processes[process.pid]
        assert (found.config, found.pty, found.exit) == (config, False, None)
        events = found.subscribe()
        await found.write(b"hello\n")
        assert await anext(events) == Output("stdout", b"got hello\n")
        await found.close_stdin()
        assert await anext(events) == Exit(0, True, "exit status 0")
        assert heir.processes[ended.pid].exit == Exit(7, True, "exit status 7")
        assert (await output(heir.processes[ended.pid]))[1].exit_code == 7
    finally:
        await heir.close()


async def test_many_processes_with_long_labels_are_all_found(agent: Native) -> None:
    pids = set()
    for n in range(20):
        config = ProcessConfig("/bin/sleep", ("1000",), {"LONG": "x" * 15_000, "N": str(n)}, None)
        pids.add((await agent.guest.exec(config)).pid)
    agent.guest._link._read(False)
    heir = await agent.successor()
    try:
        assert set(heir.processes) == pids
        assert {process.config.envs["N"] for process in heir.processes.values()} == set(map(str, range(20)))
        for process in list(heir.processes.values()):
            await process.signal(signal.SIGKILL)
    finally:
        await heir.close()


async def test_a_quiesced_guest_stands_still_and_goes_on(agent: Native) -> None:
    process = await agent.guest.exec(ProcessConfig("/bin/cat", (), {}, None), stdin=True)
    events = process.subscribe()
    await agent.guest.quiesce()
    writing = asyncio.create_task(process.write(b"kept back"))
    statting = asyncio.create_task(agent.guest.stat("/"))
    await agent.guest.unquiesce()
    await writing
    assert (await statting).type == "directory"
    assert await anext(events) == Output("stdout", b"kept back")
    await process.close_stdin()


# -- files


async def test_a_file_comes_back_as_it_was_written(agent: Native) -> None:
    entry = await agent.guest.write("d/e/f", chunks(b"one", b"", b"two"), metadata={"k": "v"}, mode=0o600)
    assert (entry.name, entry.path, entry.size, entry.mode) == ("f", f"{agent.home}/d/e/f", 6, 0o600)
    assert entry.metadata == (await agent.guest.stat("d/e/f")).metadata == {"k": "v"}
    assert await contents(agent, "d/e/f") == b"onetwo"
    assert await contents(agent, "d/e/f", offset=2, length=2) == b"et"
    assert await contents(agent, "d/e/f", offset=100) == b""
    entry = await agent.guest.write("d/e/f", chunks(b"!"), append=True, metadata={"other": "x"})
    assert (entry.size, entry.metadata) == (7, {"other": "x"})
    entry = await agent.guest.write("d/e/f", chunks())
    assert (entry.size, entry.metadata) == (0, {})


async def test_files_of_the_kernel_that_claim_to_be_empty_are_read_to_their_end(agent: Native) -> None:
    entry, reader = await agent.guest.read("/proc/sys/kernel/random/boot_id")
    assert entry.size == 0
    assert len(b"".join([chunk async for chunk in reader])) == 37


async def test_directories_are_made_moved_listed_and_removed(agent: Native) -> None:
    await agent.guest.mkdir("a/b")
    await agent.guest.write("a/b/f", chunks(b"x"))
    await agent.guest.write("a/z", chunks(b"x"))
    os.symlink("z", agent.home / "a/link")
    entries = await agent.guest.list("a", depth=2)
    assert [entry.path.removeprefix(f"{agent.home}/") for entry in entries] == [
        "a/b",
        "a/b/f",
        "a/link",
        "a/z",
    ]
    link = entries[2]
    assert (link.type, link.symlink_target) == ("file", f"{agent.home}/a/z")
    assert [entry.name for entry in await agent.guest.list("a")] == ["b", "link", "z"]
    moved = await agent.guest.move("a/b", "c/d")
    assert moved.path == f"{agent.home}/c/d"
    with pytest.raises(Conflict) as caught:
        await agent.guest.mkdir("c/d")
    assert caught.value.code == "already_exists"
    await agent.guest.remove("c")
    await agent.guest.remove("c")
    assert not (agent.home / "c").exists()


async def test_a_large_listing_arrives_whole(agent: Native) -> None:
    for n in range(1500):
        (agent.home / f"file-{n:05}").touch()
    entries = await agent.guest.list("~")
    assert [entry.name for entry in entries] == [f"file-{n:05}" for n in range(1500)]


async def test_what_is_wrong_with_a_path_is_said(agent: Native) -> None:
    (agent.home / "f").touch()
    calls: dict[str, Callable[[], Awaitable[object]]] = {
        f"path '{agent.home}/none' does not exist": lambda: agent.guest.stat("none"),
        f"path '{agent.home}/no' does not exist": lambda: agent.guest.read("no"),
        f"path '{agent.home}' is a directory": lambda: agent.guest.read("~"),
        f"path '{agent.home}/f' is not a directory": lambda: agent.guest.list("f"),
        f"path '{agent.home}/f/g' is not a directory": lambda: agent.guest.write("f/g", chunks(b"")),
        f"path '{agent.home}/x' does not exist": lambda: agent.guest.watch("x"),
        "invalid username: 'who'": lambda: agent.guest.stat("f", user="who"),
    }
    for message, call in calls.items():
        with pytest.raises((NotFound, Invalid)) as caught:
            await call()
        assert caught.value.message == message


async def test_large_transfers_both_ways_and_their_speed(agent: Native) -> None:
    """64 MiB up and down, whole, and not slower than any machine should be."""
    piece = os.urandom(MIB)
    started = time.perf_counter()
    entry = await agent.guest.write("big", chunks(*[piece] * 64))
    up = time.perf_counter() - started
    assert entry.size == 64 * MIB
    _, reader = await agent.guest.read("big")
    got, started = 0, time.perf_counter()
    async for chunk in reader:
        at = got % MIB
        assert chunk == piece[at : at + len(chunk)]
        got += len(chunk)
    down = time.perf_counter() - started
    assert got == 64 * MIB
    assert max(up, down) < 6.4, f"up {64 / up:.0f} MiB/s, down {64 / down:.0f} MiB/s"


async def test_an_abandoned_transfer_leaves_the_link_as_it_was(agent: Native) -> None:
    (agent.home / "big").write_bytes(bytes(4 * MIB))
    for _ in range(20):
        _, reader = await agent.guest.read("big")
        await anext(reader)
        del reader
    await agent.guest.stat("/")
    assert not agent.guest._link._streams
    assert not agent.guest._link._closing


# -- watches


async def test_a_file_written_is_three_events_and_they_are_there_at_once(agent: Native) -> None:
    watch = await agent.guest.watch("~")
    await agent.guest.write("f", chunks(b"x"))
    await watch.sync()
    assert [event.type for event in watch.take()] == ["create", "chmod", "write"]
    await watch.close()
    await agent.guest.write("g", chunks(b"x"))
    assert watch.take() == ()


async def test_directories_made_later_are_watched_too(agent: Native) -> None:
    watch = await agent.guest.watch("~", recursive=True)
    await agent.sh("mkdir -p new/deep && echo x > new/deep/f")
    await watch.sync()
    seen = watch.take()
    assert WatchEvent("create", "new") in seen
    assert WatchEvent("create", "new/deep/f") in seen
    events = aiter(watch)
    await agent.guest.remove("new")
    removed = set[str]()
    while "new" not in removed:
        event = await anext(events)
        removed |= {event.name} if event.type == "remove" else set()
    await watch.close()


# -- tunnels


@asynccontextmanager
async def echoing(connections: int) -> AsyncIterator[int]:
    """The port of a server that echoes; at the end, so many connections were made to it and are over."""
    over: asyncio.Queue[None] = asyncio.Queue()

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
            writer.write_eof()
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()
        over.put_nowait(None)

    async with await asyncio.start_server(echo, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]
        async with asyncio.timeout(10):
            for _ in range(connections):
                await over.get()


async def test_a_port_inside_is_reached_and_closed_from_either_side(agent: Native) -> None:
    async with echoing(connections=2) as port:
        tunnel = await agent.guest.dial(port)
        sending = asyncio.create_task(send_all(tunnel, bytes(3 * MIB)))
        got = 0
        while data := await tunnel.read(10_000):
            assert len(data) <= 10_000
            got += len(data)
        await sending
        assert got == 3 * MIB
        await tunnel.close()
        await tunnel.close()
        hasty = await agent.guest.dial(port)
        await hasty.write(b"x")
        await hasty.close()
        with pytest.raises(Conflict):
            await hasty.read()


async def send_all(tunnel: Tunnel, data: bytes) -> None:
    await tunnel.write(data)
    await tunnel.write_eof()


async def test_a_port_where_nobody_listens_is_told(agent: Native) -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    with pytest.raises(Unavailable) as caught:
        await agent.guest.dial(port)
    assert caught.value.code == "port_not_open"


async def test_connections_outwards_come_to_the_host(tmp_path: Path) -> None:
    """Natively there is no redirection: what is asked for is the listener's own address."""
    redirect = socket.create_server(("127.0.0.1", 0))
    redirect.setblocking(False)
    asked: list[tuple[str, int]] = []

    async def upstream(address: str, port: int, tunnel: Tunnel) -> None:
        asked.append((address, port))
        if len(asked) > 1:
            raise ConnectionRefusedError
        tunnel.accept()
        while data := await tunnel.read():
            await tunnel.write(data.upper())

    fds = (redirect.fileno(),)
    async with native(tmp_path, "--redirect", str(redirect.fileno()), pass_fds=fds) as agent:
        agent.guest.on_connect = upstream
        reader, writer = await asyncio.open_connection(*redirect.getsockname())
        writer.write(b"hello")
        assert await reader.readexactly(5) == b"HELLO"
        writer.write_eof()
        assert await reader.read() == b""
        writer.close()
        await writer.wait_closed()
        reader, writer = await asyncio.open_connection(*redirect.getsockname())
        with pytest.raises(ConnectionResetError):
            await reader.read()
        writer.close()
        assert asked == [redirect.getsockname()] * 2
    redirect.close()


async def test_look_ups_come_to_the_host(tmp_path: Path) -> None:
    async def resolve(query: bytes) -> bytes:
        return query[:2] + b"answer"

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as dns:
        dns.bind(("127.0.0.1", 0))
        async with native(tmp_path, "--dns", str(dns.fileno()), pass_fds=(dns.fileno(),)) as agent:
            agent.guest.on_resolve = resolve
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as program:
                program.connect(dns.getsockname())
                program.send(b"id" + bytes(12))
                async with asyncio.timeout(5):
                    answer = await asyncio.get_running_loop().sock_recv(program, 100)
    assert answer == b"idanswer"


async def test_the_guest_tells_its_numbers(agent: Native) -> None:
    stats = await agent.guest.stats()
    assert 0 < stats["mem_available"] < stats["mem_total"]
    assert stats["disk_total"] > stats["disk_used"] > 0
    assert stats["uptime_ns"] > 0
