"""The host's end of a link against a guest that the test plays itself: order, flow control, cancellation."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from tests.guest import wire
from tests.guest.peer import Peer, output, scripted

from wardian.guest.guest import Exit, Output, ProcessConfig, Tunnel
from wardian.guest.labels import encode_label
from wardian.model.errors import Conflict, GuestFault, Invalid, NotFound, Unavailable

CONFIG = ProcessConfig("x", (), {}, None)


@pytest.fixture
async def peer() -> AsyncIterator[Peer]:
    async with scripted() as peer:
        yield peer
        assert not peer.faults


def listed(pid: int, stream: int, *, flags: int = 0, status: int | None = None) -> bytes:
    """A process as HELLO lists it."""
    parts = [wire.field(20, wire.u32(pid)), wire.field(10, encode_label(CONFIG))]
    parts += [wire.field(11, wire.u32(stream)), wire.field(12, wire.u8(flags))]
    if status is not None:
        parts.append(wire.field(21, wire.u32(status)))
    return wire.field(4, b"".join(parts))


# -- attaching


async def test_what_an_earlier_host_left_on_the_link_is_not_taken_for_an_answer(peer: Peer) -> None:
    attaching = asyncio.create_task(peer.guest.attach(7))
    token = await peer.token()
    assert token >> 32 == 7
    await peer.send(wire.HELLO, 0, peer.hello(token ^ 1, listed(50, 1)))
    await peer.send(wire.DATA, 9, b"stale", flags=1)
    await peer.send(wire.QUIESCED, 0)
    await peer.send(wire.HELLO, 0, peer.hello(token, listed(60, 3)))
    await attaching
    assert set(peer.guest.processes) == {60}
    await peer.settled()


async def test_processes_survive_an_attach_and_new_streams_get_new_ids(peer: Peer) -> None:
    await peer.attached(listed(60, 41, flags=2), listed(61, 43, flags=4, status=256))
    alive, ended = peer.guest.processes[60], peer.guest.processes[61]
    assert (alive.config, alive.pty, alive.exit) == (CONFIG, False, None)
    assert ended.exit == Exit(1, True, "exit status 1")
    await peer.send(wire.END, 43, wire.u32(0) + wire.field(21, wire.u32(256)))
    assert await output(ended) == (b"", ended.exit)
    following = alive.subscribe()
    await peer.send(wire.DATA, 41, b"more", flags=1)
    assert await anext(following) == Output("stdout", b"more")
    await alive.write(b"in")
    assert (await peer.on(wire.DATA)).payload == b"in"
    _, stream = await peer.started()
    assert stream == 45


async def test_a_hello_may_span_frames(peer: Peer) -> None:
    attaching = asyncio.create_task(peer.guest.attach(7))
    token = await peer.token()
    await peer.send(wire.HELLO, 0, peer.hello(token, listed(60, 1)), flags=1)
    await peer.send(wire.HELLO, 0, listed(61, 3))
    await attaching
    assert set(peer.guest.processes) == {60, 61}


async def test_parts_of_a_hello_that_nobody_read_do_not_confuse(peer: Peer) -> None:
    """The end of one whose beginning was read, then the beginning of one whose end was never sent."""
    attaching = asyncio.create_task(peer.guest.attach(7))
    token = await peer.token()
    await peer.send(wire.HELLO, 0, listed(50, 1), flags=1)
    await peer.send(wire.HELLO, 0, listed(51, 3))
    await peer.send(wire.HELLO, 0, peer.hello(token ^ 1, listed(52, 5)), flags=1)
    await peer.send(wire.HELLO, 0, peer.hello(token, listed(60, 7)), flags=1)
    await peer.send(wire.HELLO, 0, listed(61, 9))
    await attaching
    assert set(peer.guest.processes) == {60, 61}


async def test_an_exec_given_up_during_an_attach_is_found_by_it(peer: Peer) -> None:
    await peer.attached()
    starting = asyncio.create_task(peer.guest.exec(CONFIG))
    stream = (await peer.on(wire.OPEN)).stream
    starting.cancel()
    await asyncio.wait([starting])
    again = asyncio.create_task(peer.guest.attach(8))
    await peer.send(wire.HELLO, 0, peer.hello(await peer.token(), listed(60, stream)))
    await again
    assert set(peer.guest.processes) == {60}


async def test_attaching_anew_keeps_processes_and_their_subscribers(peer: Peer) -> None:
    await peer.attached()
    process, stream = await peer.started(100)
    lost, _ = await peer.started(101)
    events, lost_events = process.subscribe(), lost.subscribe()
    asking = asyncio.create_task(peer.guest.stat("/f"))
    await peer.on(wire.OPEN)
    again = asyncio.create_task(peer.guest.attach(8))
    token = await peer.token()
    with pytest.raises(Unavailable):
        await asking
    await peer.send(wire.HELLO, 0, peer.hello(token, listed(100, stream)))
    await again
    await peer.send(wire.DATA, stream, b"x", flags=1)
    assert await anext(events) == Output("stdout", b"x")
    with pytest.raises(Unavailable):
        await anext(lost_events)


# -- processes


async def test_output_waits_for_the_first_subscriber(peer: Peer) -> None:
    """All that the process wrote before anybody could subscribe is there, even when it has ended since."""
    await peer.attached()
    process, stream = await peer.started()
    await peer.send(wire.DATA, stream, b"out", flags=1)
    await peer.send(wire.DATA, stream, b"err", flags=2)
    await peer.ended(stream, 3 << 8)
    await peer.settled()
    assert process.exit is not None
    events = [event async for event in process.subscribe()]
    assert events == [Output("stdout", b"out"), Output("stderr", b"err"), Exit(3, True, "exit status 3")]


async def test_a_late_subscriber_gets_the_exit(peer: Peer) -> None:
    await peer.attached()
    process, stream = await peer.started()
    await peer.send(wire.DATA, stream, b"out", flags=1)
    await peer.ended(stream, 9)
    assert (await output(process))[0] == b"out"
    assert await output(process) == (b"", Exit(-1, False, "signal: killed", 9))
    assert peer.guest.processes[100] is process


async def test_the_exit_is_known_before_the_output_has_ended(peer: Peer) -> None:
    await peer.attached()
    process, stream = await peer.started()
    await peer.send(wire.EVENT, stream, b"\1" + wire.field(21, wire.u32(0)))
    await peer.settled()
    assert process.exit == Exit(0, True, "exit status 0")
    with pytest.raises(NotFound, match="process with pid 100 not found"):
        await process.signal(15)
    events = process.subscribe()
    await peer.send(wire.DATA, stream, b"from a child", flags=1)
    assert await anext(events) == Output("stdout", b"from a child")


async def test_a_pid_may_come_again_after_its_process_ended(peer: Peer) -> None:
    await peer.attached()
    _, stream = await peer.started(100)
    await peer.ended(stream)
    second, _ = await peer.started(100)
    assert peer.guest.processes[100] is second


async def test_the_slowest_subscriber_sets_the_pace(peer: Peer) -> None:
    await peer.attached()
    process, stream = await peer.started()
    fast, slow = process.subscribe(), process.subscribe()
    for _ in range(4):
        await peer.send(wire.DATA, stream, b"x" * 65536, flags=1)
    for _ in range(4):
        await anext(fast)
    await peer.settled()
    assert not [frame for frame in peer.held if frame.type == wire.WINDOW]
    await anext(slow)
    await anext(slow)
    grant = await peer.on(wire.WINDOW)
    assert (grant.stream, wire.number(grant.payload)) == (stream, 131072)


async def test_a_subscriber_that_leaves_holds_nobody_up(peer: Peer) -> None:
    await peer.attached()
    process, stream = await peer.started()
    fast, slow = process.subscribe(), process.subscribe()
    for _ in range(4):
        await peer.send(wire.DATA, stream, b"x" * 65536, flags=1)
    for _ in range(4):
        await anext(fast)
    del slow
    assert wire.number((await peer.on(wire.WINDOW)).payload) == wire.FULL_WINDOW
    del fast
    for _ in range(8):  # nobody listens: read and dropped
        await peer.send(wire.DATA, stream, b"x" * 65536, flags=2)
        if _ % 2:
            await peer.on(wire.WINDOW)


async def test_a_cancelled_exec_ends_what_comes_of_it(peer: Peer) -> None:
    await peer.attached()
    starting = asyncio.create_task(peer.guest.exec(CONFIG))
    stream = (await peer.on(wire.OPEN)).stream
    starting.cancel()
    await asyncio.wait([starting])
    await peer.send(wire.REPLY, stream, wire.u32(0) + wire.field(20, wire.u32(100)))
    killed = await peer.on(wire.CONTROL)
    assert killed.stream == stream
    assert killed.payload == b"\1" + wire.field(1, wire.u8(9)) + wire.field(2, wire.u8(1))
    await peer.ended(stream, 9)
    await peer.settled()
    assert peer.guest.processes[100].exit is not None


async def test_input_stops_at_the_window_and_goes_on_with_a_grant(peer: Peer) -> None:
    await peer.attached()
    process, stream = await peer.started(stdin=True)
    writing = asyncio.create_task(process.write(b"x" * (wire.FULL_WINDOW + 10)))
    got = 0
    while got < wire.FULL_WINDOW:
        got += len((await peer.on(wire.DATA)).payload)
    await peer.settled()
    assert not writing.done()
    await peer.send(wire.WINDOW, stream, wire.u32(131072))
    assert len((await peer.on(wire.DATA)).payload) == 10
    await writing
    await process.close_stdin()
    assert (await peer.on(wire.EOF)).flags == 0
    with pytest.raises(Conflict):
        await process.write(b"more")
    await process.close_stdin()


async def test_a_write_of_exactly_the_window_does_not_wait_for_more(peer: Peer) -> None:
    await peer.attached()
    process, _ = await peer.started(stdin=True)
    await process.write(b"x" * wire.FULL_WINDOW)
    await process.close_stdin()


async def test_a_writer_learns_that_the_process_has_ended(peer: Peer) -> None:
    await peer.attached()
    process, stream = await peer.started(stdin=True)
    writing = asyncio.create_task(process.write(b"x" * (wire.FULL_WINDOW + 10)))
    await peer.on(wire.DATA)
    await peer.ended(stream)
    with pytest.raises(NotFound):
        await writing


async def test_what_a_process_cannot_do_is_refused(peer: Peer) -> None:
    await peer.attached()
    plain, _ = await peer.started(100)
    terminal, stream = await peer.started(101, pty=True)
    with pytest.raises(Conflict, match="stdin is not open"):
        await plain.write(b"x")
    with pytest.raises(Invalid, match="no terminal"):
        await plain.resize(80, 24)
    with pytest.raises(Conflict, match="0x04"):
        await terminal.close_stdin()
    with pytest.raises(Invalid):
        await terminal.resize(0, 24)
    with pytest.raises(Invalid):
        await terminal.signal(0)
    await terminal.write(b"ls\n")
    assert (await peer.on(wire.DATA)).stream == stream
    await terminal.resize(100, 30)
    resized = await peer.on(wire.CONTROL)
    assert resized.payload == b"\2" + wire.field(6, wire.u16(100)) + wire.field(7, wire.u16(30))


@pytest.mark.parametrize(
    "config",
    [
        ProcessConfig("a\0b", (), {}, None),
        ProcessConfig("a", ("\ud800",), {}, None),
        ProcessConfig("a", (), {"K=": "v"}, None),
        ProcessConfig("a", (), {"": "v"}, None),
        ProcessConfig("a", (), {}, "\0"),
        ProcessConfig("a", ("x" * (2 << 20),), {}, None),
    ],
)
async def test_what_no_process_can_be_given_is_refused_before_it_is_sent(
    peer: Peer, config: ProcessConfig
) -> None:
    await peer.attached()
    with pytest.raises(Invalid):
        await peer.guest.exec(config)


async def test_a_long_request_spans_frames(peer: Peer) -> None:
    await peer.attached()
    starting = asyncio.create_task(peer.guest.exec(ProcessConfig("a", ("x" * 100_000,), {}, None)))
    first, second = await peer.on(wire.OPEN), await peer.on(wire.OPEN)
    assert (first.flags, second.flags, first.stream) == (1, 0, second.stream)
    args = [value for tag, value in wire.fields(first.payload[1:] + second.payload) if tag == 3]
    assert args == [b"a", b"x" * 100_000]
    starting.cancel()


# -- calls


async def test_a_cancelled_call_closes_its_stream_and_late_frames_are_dropped(peer: Peer) -> None:
    await peer.attached()
    reading = asyncio.create_task(peer.guest.read("/f"))
    stream = (await peer.on(wire.OPEN)).stream
    reading.cancel()
    assert (await peer.on(wire.CLOSE)).stream == stream
    await peer.send(wire.REPLY, stream, wire.u32(0))
    await peer.send(wire.DATA, stream, b"late")
    await peer.send(wire.END, stream, wire.u32(0))
    await peer.settled()
    assert not peer.guest._link._closing
    assert not peer.guest._link._streams


async def test_an_iterator_that_is_dropped_closes_its_stream(peer: Peer) -> None:
    await peer.attached()
    chunks, stream = await reading(peer)
    await peer.send(wire.DATA, stream, b"some")
    assert await anext(chunks) == b"some"
    del chunks
    assert (await peer.on(wire.CLOSE)).stream == stream
    await peer.send(wire.END, stream, wire.u32(0))
    await peer.settled()


async def reading(peer: Peer) -> tuple[AsyncIterator[bytes], int]:
    opening = asyncio.create_task(peer.guest.read("/f"))
    stream = (await peer.on(wire.OPEN)).stream
    await peer.send(wire.REPLY, stream, wire.u32(0) + wire.field(30, ENTRY))
    _, chunks = await opening
    del opening
    return chunks, stream


ENTRY = b"".join(
    [
        wire.field(1, "f"),
        wire.field(2, wire.u8(1)),
        wire.field(3, "/f"),
        wire.field(4, wire.u64(5)),
        wire.field(5, wire.u32(0o644)),
        wire.field(6, "user"),
        wire.field(7, "user"),
        wire.field(8, wire.u64(0)),
    ]
)


async def test_a_reader_gets_what_came_before_the_error(peer: Peer) -> None:
    await peer.attached()
    chunks, stream = await reading(peer)
    await peer.send(wire.DATA, stream, b"some")
    await peer.send(wire.END, stream, wire.u32(5) + wire.field(1, "bad disk"))
    assert await anext(chunks) == b"some"
    with pytest.raises(Exception, match="bad disk"):
        await anext(chunks)


async def test_a_full_disk_ends_a_write_at_once(peer: Peer) -> None:
    await peer.attached()

    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield b"x" * 65536

    writing = asyncio.create_task(peer.guest.write("/f", endless()))
    stream = (await peer.on(wire.OPEN)).stream
    await peer.send(wire.REPLY, stream, wire.u32(0))
    await peer.on(wire.DATA)
    await peer.send(wire.END, stream, wire.u32(28))
    with pytest.raises(Exception, match="not enough disk space") as caught:
        await writing
    assert caught.value.code == "no_space"  # type: ignore[attr-defined]


async def test_a_write_whose_source_fails_is_closed(peer: Peer) -> None:
    await peer.attached()

    async def failing() -> AsyncIterator[bytes]:
        yield b"x"
        raise ConnectionResetError

    writing = asyncio.create_task(peer.guest.write("/f", failing()))
    stream = (await peer.on(wire.OPEN)).stream
    await peer.send(wire.REPLY, stream, wire.u32(0))
    assert (await peer.on(wire.CLOSE)).stream == stream
    with pytest.raises(ConnectionResetError):
        await writing


async def test_a_guest_that_does_not_read_holds_callers_back_not_memory(peer: Peer) -> None:
    await peer.attached()
    link = peer.guest._link
    processes = [await peer.started(100 + n, stdin=True) for n in range(32)]
    writers = [asyncio.create_task(process.write(b"x" * 200_000)) for process, _ in processes]
    await asyncio.sleep(0)  # each has had its turn
    assert link.congested
    assert link._queued < (1 << 20) + 33 * 66_000
    total = 0
    while total < 32 * 200_000:
        total += len((await peer.on(wire.DATA)).payload)
    await asyncio.gather(*writers)
    assert link._queued == 0


# -- quiescing


async def test_while_quiesced_nothing_is_sent_that_may_not_be(peer: Peer) -> None:
    await peer.attached()
    process, stream = await peer.started(stdin=True)
    events = process.subscribe()
    quiescing = asyncio.create_task(peer.guest.quiesce())
    await peer.on(wire.QUIESCE)
    for _ in range(2):
        await peer.send(wire.DATA, stream, b"x" * 65536, flags=1)
    await peer.send(wire.QUIESCED, 0)
    await quiescing
    calls = [asyncio.create_task(peer.guest.stat("/f")), asyncio.create_task(process.write(b"in"))]
    await anext(events)
    await anext(events)
    assert (await peer.receive()).type == wire.WINDOW
    await peer.guest.unquiesce()
    kinds = [(await peer.receive()).type for _ in range(3)]
    assert kinds == [wire.UNQUIESCE, wire.OPEN, wire.DATA]
    calls[0].cancel()
    await calls[1]


async def test_a_cancelled_quiesce_can_be_asked_again(peer: Peer) -> None:
    await peer.attached()
    first = asyncio.create_task(peer.guest.quiesce())
    await peer.on(wire.QUIESCE)
    first.cancel()
    await peer.guest.unquiesce()
    second = asyncio.create_task(peer.guest.quiesce())
    await peer.on(wire.QUIESCE)
    await peer.send(wire.QUIESCED, 0)
    await asyncio.wait([second], timeout=0.05)
    assert not second.done()
    await peer.send(wire.QUIESCED, 0)
    await second


# -- streams of the guest's


async def connect(peer: Peer, stream: int, port: int = 443) -> None:
    body = wire.field(6, bytes([93, 184, 215, 14])) + wire.field(7, wire.u16(port))
    await peer.send(wire.OPEN, stream, wire.u8(wire.CONNECT) + body)


async def test_a_connection_is_answered_carried_and_ended(peer: Peer) -> None:
    await peer.attached()
    seen: list[tuple[str, int]] = []

    async def echo(address: str, port: int, tunnel: Tunnel) -> None:
        seen.append((address, port))
        while data := await tunnel.read():
            await tunnel.write(data.upper())

    peer.guest.on_connect = echo
    await connect(peer, 2)
    await peer.send(wire.DATA, 2, b"hello")
    assert (await peer.on(wire.REPLY)).errno == 0
    assert (await peer.on(wire.DATA)).payload == b"HELLO"
    await peer.send(wire.EOF, 2)
    assert (await peer.on(wire.END)).errno == 0
    assert seen == [("93.184.215.14", 443)]
    await peer.send(wire.WINDOW, 2, wire.u32(5))  # late frames after our END are no violation
    await peer.send(wire.CLOSE, 2)
    await peer.settled()


async def test_a_refusal_reaches_the_program_inside(peer: Peer) -> None:
    await peer.attached()
    await connect(peer, 2)
    refused = await peer.on(wire.REPLY)
    assert (refused.errno, refused.flags) == (101, 1)


async def test_a_program_that_gives_up_cancels_its_connection(peer: Peer) -> None:
    await peer.attached()
    started, cancelled = asyncio.Event(), asyncio.Event()

    async def dial(address: str, port: int, tunnel: Tunnel) -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    peer.guest.on_connect = dial
    await connect(peer, 2)
    await started.wait()
    await peer.send(wire.CLOSE, 2)
    assert (await peer.on(wire.END)).stream == 2
    await cancelled.wait()
    assert peer.guest._link.guest_streams == 0


async def test_a_look_up_is_answered_or_refused(peer: Peer) -> None:
    await peer.attached()

    async def resolve(query: bytes) -> bytes:
        if query == b"bad":
            raise OSError
        return b"<" + query + b">"

    peer.guest.on_resolve = resolve
    await peer.send(wire.OPEN, 2, wire.u8(wire.RESOLVE) + wire.field(6, b"q"))
    assert (await peer.on(wire.REPLY)).values[6] == b"<q>"
    await peer.send(wire.OPEN, 4, wire.u8(wire.RESOLVE) + wire.field(6, b"bad"))
    assert (await peer.on(wire.REPLY)).errno == 5


async def test_notices_are_passed_on_but_a_flood_is_cut_off(peer: Peer) -> None:
    await peer.attached()
    notices: list[tuple[str, object]] = []
    peer.guest.on_notice = lambda kind, facts: notices.append((kind, facts))
    told = (
        wire.field(1, "oom_kill")
        + wire.field(2, wire.u32(5))
        + wire.field(3, "hog")
        + wire.field(4, wire.u64(9))
    )
    for _ in range(200):
        await peer.send(wire.NOTICE, 0, told)
    await peer.settled()
    assert notices[0] == ("oom_kill", {"pid": 5, "name": "hog", "bytes": 9})
    assert 32 <= len(notices) < 100


# -- watches


async def test_events_that_nobody_takes_overflow(peer: Peer) -> None:
    await peer.attached()
    opening = asyncio.create_task(peer.guest.watch("/d"))
    stream = (await peer.on(wire.OPEN)).stream
    await peer.send(wire.REPLY, stream, wire.u32(0))
    watch = await opening
    told = b"\2" + wire.field(24, wire.u8(1)) + wire.field(25, b"x" * 4000)
    for _ in range(2000):
        await peer.send(wire.EVENT, stream, told)
    await peer.settled()
    events = watch.take()
    assert len(events) < 1100
    assert events[-1].type == "overflow"
    assert {event.type for event in events[:-1]} == {"create"}
    await peer.send(wire.EVENT, stream, told)
    assert (await anext(aiter(watch))).name == "x" * 4000
    await watch.close()
    assert (await peer.on(wire.CLOSE)).stream == stream


# -- the end


async def test_closing_fails_whatever_waits_and_is_no_fault(peer: Peer) -> None:
    await peer.attached()
    process, _ = await peer.started()
    waiting = [
        asyncio.create_task(peer.guest.stat("/f")),
        asyncio.create_task(output(process)),
        asyncio.create_task(peer.guest.quiesce()),
    ]
    await peer.on(wire.QUIESCE)
    await peer.guest.close()
    for task in waiting:
        with pytest.raises(Unavailable):
            await task
    with pytest.raises(Unavailable):
        await peer.guest.stat("/f")
    with pytest.raises(Unavailable):
        await peer.guest.attach(8)


async def test_a_guest_that_goes_away_is_a_fault() -> None:
    async with scripted() as peer:
        await peer.attached()
        asking = asyncio.create_task(peer.guest.stat("/f"))
        await peer.on(wire.OPEN)
        peer.link.close()
        with pytest.raises(GuestFault):
            await asking
        await peer.faulted.wait()
        assert [getattr(fault, "code", None) for fault in peer.faults] == ["guest_gone"]


async def test_a_guest_that_does_not_answer_an_attach_is_faulty() -> None:
    async with scripted() as peer:
        with pytest.raises(GuestFault, match="did not answer"):
            await peer.guest.attach(7, timeout_s=0.05)
        await peer.faulted.wait()


async def test_a_guest_that_cannot_take_its_identity_is_faulty() -> None:
    async with scripted() as peer:
        attaching = asyncio.create_task(peer.guest.attach(7))
        await peer.send(wire.HELLO, 0, peer.hello(await peer.token(), wire.field(9, "hostname: denied")))
        with pytest.raises(GuestFault, match="hostname: denied"):
            await attaching
        await peer.faulted.wait()
