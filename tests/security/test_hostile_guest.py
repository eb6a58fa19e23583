"""A guest that lies. Whatever it sends, the host ends that guest, once, and nothing else happens to it."""

from __future__ import annotations

import asyncio
import logging
import struct
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.guest import wire
from tests.guest.peer import Peer, output, scripted
from tests.unit.test_guest_link import ENTRY, connect, listed, reading

from wardian.guest.guest import ProcessConfig, Tunnel
from wardian.guest.pace import Bucket
from wardian.model.errors import GuestFault, LimitExceeded, WardianError

Attack = Callable[[Peer], Awaitable[None]]


def header(kind: int, flags: int = 0, reserved: int = 0, stream: int = 0) -> bytes:
    return struct.pack("<BBHI", kind, flags, reserved, stream)


def packet(raw: bytes) -> Attack:
    async def attack(peer: Peer) -> None:
        await peer.raw(raw)

    return attack


def to_process(kind: int, payload: bytes = b"", flags: int = 0) -> Attack:
    async def attack(peer: Peer) -> None:
        _, stream = await peer.started()
        await peer.send(kind, stream, payload, flags)

    return attack


def to_call(kind: int, payload: bytes = b"", flags: int = 0) -> Attack:
    """Something wrong as the first frame on a call's stream."""

    async def attack(peer: Peer) -> None:
        asking = asyncio.create_task(peer.guest.stat("/f"))
        stream = (await peer.on(wire.OPEN)).stream
        await peer.send(kind, stream, payload, flags)
        with pytest.raises(GuestFault):
            await asking

    return attack


def to_reader(kind: int, payload: bytes = b"", flags: int = 0) -> Attack:
    async def attack(peer: Peer) -> None:
        chunks, stream = await reading(peer)
        await peer.send(kind, stream, payload, flags)
        with pytest.raises(GuestFault):
            await anext(chunks)

    return attack


def opened(payload: bytes, stream: int = 2, flags: int = 0) -> Attack:
    async def attack(peer: Peer) -> None:
        await peer.send(wire.OPEN, stream, payload, flags)

    return attack


async def more_output_than_the_window(peer: Peer) -> None:
    process, stream = await peer.started()
    following = asyncio.create_task(output(process))
    slow = process.subscribe()
    for _ in range(5):
        await peer.send(wire.DATA, stream, b"x" * 65536, flags=1)
    with pytest.raises(GuestFault):
        await following
    del slow


async def more_contents_than_the_window(peer: Peer) -> None:
    chunks, stream = await reading(peer)
    for _ in range(5):
        await peer.send(wire.DATA, stream, b"x" * 65536)
    await peer.faulted.wait()
    with pytest.raises(GuestFault):
        await anext(chunks)


async def more_contents_than_asked_for(peer: Peer) -> None:
    opening = asyncio.create_task(peer.guest.read("/f", length=3))
    stream = (await peer.on(wire.OPEN)).stream
    await peer.send(wire.REPLY, stream, wire.u32(0) + wire.field(30, ENTRY))
    _, chunks = await opening
    await peer.send(wire.DATA, stream, b"four")
    with pytest.raises(GuestFault):
        await anext(chunks)


async def contents_after_their_end(peer: Peer) -> None:
    chunks, stream = await reading(peer)
    await peer.send(wire.EOF, stream)
    await peer.send(wire.DATA, stream, b"x")
    await peer.faulted.wait()
    del chunks


async def a_stream_after_its_end(peer: Peer) -> None:
    _, stream = await peer.started()
    await peer.ended(stream)
    await peer.send(wire.DATA, stream, b"x", flags=1)


async def a_process_that_exits_twice(peer: Peer) -> None:
    _, stream = await peer.started()
    for _ in range(2):
        await peer.send(wire.EVENT, stream, b"\1" + wire.field(21, wire.u32(0)))


async def two_processes_with_one_pid(peer: Peer) -> None:
    await peer.started(100)
    with pytest.raises(GuestFault):
        await peer.started(100)


async def pid_one(peer: Peer) -> None:
    with pytest.raises(GuestFault):
        await peer.started(1)


async def a_write_that_ends_before_its_data(peer: Peer) -> None:
    release = asyncio.Event()

    async def chunks() -> AsyncIterator[bytes]:
        await release.wait()
        yield b"x"

    writing = asyncio.create_task(peer.guest.write("/f", chunks()))
    stream = (await peer.on(wire.OPEN)).stream
    await peer.send(wire.REPLY, stream, wire.u32(0))
    await peer.send(wire.END, stream, wire.u32(0) + wire.field(30, ENTRY))
    await peer.faulted.wait()
    release.set()
    with pytest.raises(GuestFault):
        await writing


async def a_listing_of_nonsense(peer: Peer) -> None:
    listing = asyncio.create_task(peer.guest.list("/d"))
    stream = (await peer.on(wire.OPEN)).stream
    await peer.send(wire.REPLY, stream, wire.u32(0))
    await peer.send(wire.DATA, stream, wire.field(30, b"\1\2\3"))
    with pytest.raises(GuestFault):
        await listing


async def a_listing_cut_short(peer: Peer) -> None:
    listing = asyncio.create_task(peer.guest.list("/d"))
    stream = (await peer.on(wire.OPEN)).stream
    await peer.send(wire.REPLY, stream, wire.u32(0))
    await peer.send(wire.DATA, stream, wire.field(30, ENTRY)[:-1])
    await peer.send(wire.END, stream, wire.u32(0))
    with pytest.raises(GuestFault):
        await listing


async def stats_without_numbers(peer: Peer) -> None:
    asking = asyncio.create_task(peer.guest.stats())
    stream = (await peer.on(wire.OPEN)).stream
    await peer.send(wire.REPLY, stream, wire.u32(0), flags=1)
    with pytest.raises(GuestFault):
        await asking


async def guest_streams_that_go_backwards(peer: Peer) -> None:
    await connect(peer, 4)
    await connect(peer, 2)


ATTACKS: dict[str, Attack] = {
    "a packet too short": packet(b"\x12\0\0\0\0\0\0"),
    "a packet too long": packet(header(wire.DATA) + b"x" * 65537),
    "an unknown type": packet(header(0x19, stream=1)),
    "an unknown type on the link": packet(header(0x08)),
    "type zero": packet(header(0, stream=1)),
    "a type of the host's": packet(header(wire.CONTROL, stream=1) + b"\1"),
    "an attach from the guest": packet(header(wire.ATTACH)),
    "a quiesce from the guest": packet(header(wire.QUIESCE)),
    "the reserved field set": packet(header(wire.NOTICE, reserved=1)),
    "a second hello": packet(header(wire.HELLO) + wire.field(1, wire.u16(1)) + wire.field(2, wire.u64(0))),
    "a quiesced out of the blue": packet(header(wire.QUIESCED)),
    "a notice that is none": packet(header(wire.NOTICE) + wire.field(1, "party")),
    "a notice of broken fields": packet(header(wire.NOTICE) + b"\1\xff\xff\xff\xff"),
    "a flag on a notice": packet(header(wire.NOTICE, flags=1) + wire.field(1, "oom_kill")),
    "data for a stream nobody opened": packet(header(wire.DATA, stream=99) + b"x"),
    "data for a guest's stream nobody opened": packet(header(wire.DATA, stream=98) + b"x"),
    "data on the link itself": packet(header(wire.DATA) + b"x"),
    "an odd stream from the guest": opened(wire.u8(wire.CONNECT), stream=1001),
    "an open without an op": opened(b""),
    "an open for an op of the host's": opened(wire.u8(wire.EXEC)),
    "an open in parts": opened(wire.u8(wire.CONNECT), flags=1),
    "an open without fields": opened(wire.u8(wire.CONNECT)),
    "a look-up without a query": opened(wire.u8(wire.RESOLVE)),
    "an address of seven bytes": opened(
        wire.u8(wire.CONNECT) + wire.field(6, b"1234567") + wire.field(7, wire.u16(1))
    ),
    "guest streams that go backwards": guest_streams_that_go_backwards,
    "output on the channel of a terminal": to_process(wire.DATA, b"x", flags=3),
    "output on channel zero": to_process(wire.DATA, b"x"),
    "output on channel 200": to_process(wire.DATA, b"x", flags=200),
    "the end of a wrong channel": to_process(wire.EOF, flags=3),
    "an end of data with data": to_process(wire.EOF, b"x", flags=1),
    "a grant of nothing": to_process(wire.WINDOW, wire.u32(0)),
    "a grant of everything": to_process(wire.WINDOW, wire.u32(2**32 - 1)),
    "a grant that is no number": to_process(wire.WINDOW, b"123"),
    "a grant to a reader": to_reader(wire.WINDOW, wire.u32(1)),
    "a second reply": to_process(wire.REPLY, wire.u32(0)),
    "an unknown event": to_process(wire.EVENT, b"\7"),
    "an empty event": to_process(wire.EVENT),
    "an exit without a status": to_process(wire.EVENT, b"\1"),
    "an exit with a stopped status": to_process(wire.EVENT, b"\1" + wire.field(21, wire.u32(0x137F))),
    "an end without a status": to_process(wire.END, wire.u32(0)),
    "an end without an errno": to_process(wire.END, b"\0\0"),
    "a file event from a process": to_process(wire.EVENT, b"\2" + wire.field(24, wire.u8(1))),
    "a close with a payload": to_process(wire.CLOSE, b"x"),
    "an open of a stream that exists": to_process(wire.OPEN, wire.u8(wire.CONNECT)),
    "a reply that is too short": to_call(wire.REPLY, b"\0\0", flags=1),
    "a reply of broken fields": to_call(wire.REPLY, wire.u32(0) + b"\1", flags=1),
    "a reply without an entry": to_call(wire.REPLY, wire.u32(0), flags=1),
    "a reply that does not finish": to_call(wire.REPLY, wire.u32(0) + wire.field(30, ENTRY)),
    "a refusal that does not finish": to_call(wire.REPLY, wire.u32(2)),
    "an errno from outer space": to_call(wire.REPLY, wire.u32(2**32 - 1), flags=1),
    "a reply with other flags": to_call(wire.REPLY, wire.u32(0), flags=2),
    "data before the reply": to_call(wire.DATA, b"x"),
    "an end before the reply": to_call(wire.END, wire.u32(0)),
    "an event before the reply": to_call(wire.EVENT, b"\1"),
    "contents on another channel": to_reader(wire.DATA, b"x", flags=1),
    "more output than the window": more_output_than_the_window,
    "more contents than the window": more_contents_than_the_window,
    "more contents than asked for": more_contents_than_asked_for,
    "contents after their end": contents_after_their_end,
    "a stream after its end": a_stream_after_its_end,
    "a process that exits twice": a_process_that_exits_twice,
    "two processes with one pid": two_processes_with_one_pid,
    "pid one": pid_one,
    "a write that ends before its data": a_write_that_ends_before_its_data,
    "a listing of nonsense": a_listing_of_nonsense,
    "a listing cut short": a_listing_cut_short,
    "stats without numbers": stats_without_numbers,
}


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS.keys())
async def test_a_violation_ends_the_guest_once(attack: Attack) -> None:
    async with scripted() as peer:
        await peer.attached()
        bystander, _ = await peer.started(4000)
        following = asyncio.create_task(output(bystander))
        await attack(peer)
        async with asyncio.timeout(10):
            await peer.faulted.wait()
        with pytest.raises(GuestFault):
            await following
        with pytest.raises(GuestFault):
            await peer.guest.stat("/f")
        assert [type(fault) for fault in peer.faults] == [GuestFault]


@pytest.mark.parametrize(
    "hello",
    [
        [wire.field(1, wire.u16(2))],
        [wire.field(1, b"x")],
        [b"\1\2\3"],
        [listed(60, 2)],
        [listed(60, 2**32 - 1)],
        [listed(60, 1), listed(61, 1)],
        [listed(60, 1), listed(60, 3)],
        [listed(0, 1)],
        [listed(60, 1, flags=4)],
        [wire.field(4, wire.field(20, wire.u32(5)) + wire.field(11, wire.u32(1)) + wire.field(12, b"\0"))],
    ],
    ids=str,
)
async def test_a_hello_that_lies_fails_the_attach(hello: list[bytes]) -> None:
    async with scripted() as peer:
        attaching = asyncio.create_task(peer.guest.attach(7))
        token = await peer.token()
        await peer.send(wire.HELLO, 0, peer.hello(token, *hello))
        with pytest.raises(GuestFault):
            await attaching


async def test_a_hello_without_an_end_is_cut_off() -> None:
    async with scripted() as peer:
        attaching = asyncio.create_task(peer.guest.attach(7))
        await peer.token()
        await peer.send(wire.HELLO, 0, peer.hello(0), flags=1)
        while not peer.guest_is_done:
            await peer.send(wire.HELLO, 0, wire.field(4, b"x" * 65000), flags=1)
        with pytest.raises(GuestFault):
            await attaching


async def test_a_listing_too_large_to_hold_is_refused_and_the_guest_lives() -> None:
    async with scripted() as peer:
        await peer.attached()
        listing = asyncio.create_task(peer.guest.list("/d"))
        stream = (await peer.on(wire.OPEN)).stream
        await peer.send(wire.REPLY, stream, wire.u32(0))
        piece = wire.field(99, b"x" * 65000)  # fields that we do not know count as well
        window = wire.FULL_WINDOW
        while True:
            while window < len(piece):
                frame = await peer.receive()
                if frame.type == wire.CLOSE:
                    break
                window += wire.number(frame.payload)
            else:
                await peer.send(wire.DATA, stream, piece)
                window -= len(piece)
                continue
            break
        await peer.send(wire.END, stream, wire.u32(0))
        with pytest.raises(LimitExceeded):
            await listing
        await peer.settled()
        assert not peer.faults


# -- memory


async def growth_of(peer: Peer, attack: Callable[[], Awaitable[None]]) -> int:
    """Bytes of Python memory that an attack leaves behind or held at its peak."""
    await peer.settled()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        await attack()
        await peer.settled()
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


async def test_finely_chopped_output_that_nobody_reads_stays_small() -> None:
    async with scripted() as peer:
        await peer.attached()
        process, stream = await peer.started()
        slow = process.subscribe()

        async def dribble() -> None:
            for n in range(20_000):
                await peer.send(wire.DATA, stream, b"x", flags=1 + n % 2)

        assert await growth_of(peer, dribble) < 600_000
        del slow
        assert not peer.faults


async def test_empty_output_is_nothing() -> None:
    async with scripted() as peer:
        await peer.attached()
        process, stream = await peer.started()
        slow = process.subscribe()

        async def nothing() -> None:
            for _ in range(10_000):
                await peer.send(wire.DATA, stream, b"", flags=1)

        assert await growth_of(peer, nothing) < 300_000
        del slow
        assert not peer.faults


async def test_a_guest_that_asks_and_never_reads_is_not_read_either() -> None:
    """Look-ups are answered at once; when the answers pile up, the questions are left where they are."""
    async with scripted() as peer:
        await peer.attached()

        async def long_answer(query: bytes) -> bytes:
            return b"x" * 60_000

        peer.guest.on_resolve = long_answer
        link = peer.guest._link
        peer.link.setblocking(False)
        sent = 0
        for n in range(1, 200_000):
            body = wire.u8(wire.RESOLVE) + wire.field(6, b"q")
            try:
                peer.link.send(header(wire.OPEN, stream=2 * n) + body)
                sent += 1
            except BlockingIOError:
                if not link._reading:
                    break
                await asyncio.sleep(0)
        assert not link._reading
        assert link._queued < 16 << 20
        assert not peer.faults
        answered = 0
        while answered < sent:
            frame = await peer.receive()
            answered += frame.type == wire.REPLY
        assert link._reading


async def test_a_flood_of_small_frames_is_read_slowly() -> None:
    """Late frames of a stream that is over cost only our time, but of that a guest has only so much."""
    async with scripted() as peer:
        await peer.attached()
        await connect(peer, 2)
        await peer.on(wire.REPLY)
        link = peer.guest._link
        link._bucket = Bucket(10, 500)
        paused = 0
        for _ in range(300):
            await peer.send(wire.DATA, 2, b"late")
            paused += not link._reading
        assert paused
        await peer.settled()
        assert not peer.faults


async def test_a_guest_that_does_not_keep_quiet_is_ended() -> None:
    async with scripted() as peer:
        await peer.attached()

        async def long_answer(query: bytes) -> bytes:
            return b"x" * 60_000

        peer.guest.on_resolve = long_answer
        quiescing = asyncio.create_task(peer.guest.quiesce())
        await peer.on(wire.QUIESCE)
        await peer.send(wire.QUIESCED, 0)
        await quiescing
        asked = 0
        while not peer.guest_is_done:
            asked += 1
            await peer.send(wire.OPEN, 2 * asked, wire.u8(wire.RESOLVE) + wire.field(6, b"q"))
            await asyncio.sleep(0)
        assert asked < 1000
        await peer.faulted.wait()


async def test_connections_and_look_ups_are_bounded() -> None:
    async with scripted() as peer:
        await peer.attached()
        forever = asyncio.Event()

        async def hang(address: str, port: int, tunnel: Tunnel) -> None:
            await forever.wait()

        async def hang_resolve(query: bytes) -> bytes:
            await forever.wait()
            return b""

        peer.guest.on_connect, peer.guest.on_resolve = hang, hang_resolve
        for n in range(1, 1025):
            await connect(peer, 2 * n)
        await connect(peer, 2050)
        refused = await peer.on(wire.REPLY)
        assert (refused.stream, refused.errno) == (2050, 24)
        for n in range(65):
            await peer.send(wire.OPEN, 2052 + 2 * n, wire.u8(wire.RESOLVE) + wire.field(6, b"q"))
        refused = await peer.on(wire.REPLY)
        assert (refused.stream, refused.errno) == (2052 + 128, 11)
        assert not peer.faults


# -- fuzzing

small_ids = st.integers(0, 12)
payloads = st.one_of(
    st.binary(max_size=40),
    st.sampled_from(
        [
            wire.u32(0),
            wire.u32(2) + wire.field(1, "words"),
            wire.u32(0) + wire.field(20, wire.u32(77)),
            wire.u32(0) + wire.field(30, ENTRY),
            b"\1" + wire.field(21, wire.u32(9)),
            b"\2" + wire.field(24, wire.u8(1)) + wire.field(25, "n"),
            wire.u32(1000),
            wire.field(30, ENTRY),
            wire.u8(wire.CONNECT) + wire.field(6, b"\x01\x01\x01\x01") + wire.field(7, wire.u16(80)),
            wire.u8(wire.RESOLVE) + wire.field(6, b"q"),
            wire.field(1, "oom_kill"),
        ]
    ),
)
packets = st.one_of(
    st.binary(max_size=30),
    st.builds(
        lambda kind, flags, stream, payload: header(kind, flags, 0, stream) + payload,
        st.sampled_from([*range(wire.OPEN, wire.CONTROL + 1), wire.NOTICE, wire.HELLO]),
        st.integers(0, 3),
        small_ids,
        payloads,
    ),
)


EXECUTING, READING, WATCHING, DIALLING, LISTING, ASKING = range(1, 12, 2)  # the streams of ``busy``, by id
yes, exited = wire.u32(0), b"\1" + wire.field(21, wire.u32(9))
likely = st.sampled_from(
    [
        header(wire.REPLY, stream=EXECUTING) + yes + wire.field(20, wire.u32(77)),
        header(wire.DATA, 1, stream=EXECUTING) + b"out",
        header(wire.DATA, 2, stream=EXECUTING) + b"err",
        header(wire.WINDOW, stream=EXECUTING) + wire.u32(1),
        header(wire.EVENT, stream=EXECUTING) + exited,
        header(wire.END, stream=EXECUTING) + yes + exited[1:],
        header(wire.REPLY, stream=READING) + yes + wire.field(30, ENTRY),
        header(wire.DATA, stream=READING) + b"contents",
        header(wire.END, stream=READING) + yes,
        header(wire.REPLY, stream=WATCHING) + yes,
        header(wire.EVENT, stream=WATCHING) + b"\2" + wire.field(24, wire.u8(1)) + wire.field(25, "n"),
        header(wire.END, stream=WATCHING) + wire.u32(2),
        header(wire.REPLY, stream=DIALLING) + yes,
        header(wire.DATA, stream=DIALLING) + b"hello",
        header(wire.EOF, stream=DIALLING),
        header(wire.END, stream=DIALLING) + wire.u32(104),
        header(wire.REPLY, stream=LISTING) + yes,
        header(wire.DATA, stream=LISTING) + wire.field(30, ENTRY),
        header(wire.END, stream=LISTING) + yes,
        header(wire.REPLY, 1, stream=ASKING) + yes + wire.field(30, ENTRY),
        header(wire.OPEN, stream=2)
        + wire.u8(wire.CONNECT)
        + wire.field(6, b"\1\1\1\1")
        + wire.field(7, b"\1\1"),
        header(wire.DATA, stream=2) + b"request",
        header(wire.CLOSE, stream=2),
    ]
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(likely, max_size=30, unique=True), st.lists(packets, max_size=5))
def test_any_packets_whatever_leave_a_host_that_works_or_a_single_fault(
    prelude: list[bytes], sent: list[bytes]
) -> None:
    """First frames that make sense (if not always in this order), so that what follows gets deep."""
    asyncio.run(bombard(sorted(prelude, key=lambda raw: raw[0] not in (wire.REPLY, wire.OPEN)) + sent))


async def bombard(sent: list[bytes]) -> None:
    escaped: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: escaped.append(context))
    logged = _Logged()
    logging.getLogger("wardian").addHandler(logged)
    try:
        async with scripted() as peer:
            await peer.attached()

            async def swallow(address: str, port: int, tunnel: Tunnel) -> None:
                await tunnel.read()

            peer.guest.on_connect = swallow
            calls = busy(peer)
            await asyncio.sleep(0)
            for raw in sent:
                if raw and not peer.guest_is_done:
                    await peer.raw(raw)
            await peer.settled()
            assert len(peer.faults) == peer.guest_is_done
            await peer.guest.close()
            for outcome in await asyncio.gather(*calls, return_exceptions=True):
                if isinstance(outcome, BaseException) and not isinstance(outcome, WardianError):
                    raise outcome
    finally:
        logging.getLogger("wardian").removeHandler(logged)
    assert not escaped
    assert not logged.records


def busy(peer: Peer) -> list[asyncio.Task[object]]:
    """One of every kind of call under way."""
    guest = peer.guest

    async def read() -> None:
        _, chunks = await guest.read("/f")
        async for _ in chunks:
            pass

    async def follow() -> None:
        await output(await guest.exec(ProcessConfig("x", (), {}, None), stdin=True))

    async def watch() -> None:
        async for _ in await guest.watch("/d"):
            pass

    async def dial() -> None:
        tunnel = await guest.dial(80)
        try:
            await tunnel.write(b"x")
            await tunnel.read()
        except OSError as error:
            raise WardianError(str(error)) from error

    works = (follow(), read(), watch(), dial(), guest.list("/d"), guest.stat("/f"))  # streams 1, 3, 5, ...
    return [asyncio.ensure_future(work) for work in works]


class _Logged(logging.Handler):
    """Whatever is logged as an error: our code met something it did not think of."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)
