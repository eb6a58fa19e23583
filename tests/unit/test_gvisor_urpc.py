"""The urpc client against sentries that behave, and sentries that do not."""

from __future__ import annotations

import array
import asyncio
import json
import os
import socket
from collections.abc import Awaitable, Callable, Sequence

import pytest

from wardian.isolation.gvisor import urpc
from wardian.isolation.gvisor.urpc import UrpcBroken, UrpcRefused

Answer = Callable[[socket.socket], Awaitable[None]]


class Sentry:
    """The far end: one coroutine per connection the client makes."""

    def __init__(self, *answers: Answer) -> None:
        self._answers = list(answers)
        self._tasks: list[asyncio.Task[None]] = []

    async def call(
        self, method: str, arg: object = None, *, fds: Sequence[int] = (), timeout_s: float = 5
    ) -> object:
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)

        async def serve(answer: Answer) -> None:
            with theirs:
                await answer(theirs)

        self._tasks.append(asyncio.ensure_future(serve(self._answers.pop(0))))
        return await urpc.call(ours, method, arg, fds=fds, timeout_s=timeout_s)

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def says(*pieces: bytes, then_wait: bool = True) -> Answer:
    """Answer any request with these pieces."""

    async def answer(sock: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        await loop.sock_recv(sock, 65536)
        for piece in pieces:
            await loop.sock_sendall(sock, piece)
            await asyncio.sleep(0)
        if then_wait:
            await asyncio.get_running_loop().create_future()

    return answer


GOOD = b'{"success":true,"err":"","result":{"a":"}"}}'


async def test_a_call_brings_its_result_however_it_is_cut() -> None:
    pieces = [GOOD[i : i + 1] for i in range(len(GOOD))]
    for sentry in (Sentry(says(GOOD)), Sentry(says(*pieces)), Sentry(says(GOOD + b"\n"))):
        assert await sentry.call("X") == {"a": "}"}
        await sentry.close()


async def test_descriptors_go_with_the_first_byte() -> None:
    seen: list[object] = []

    async def answer(sock: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        readable = asyncio.Event()
        loop.add_reader(sock, readable.set)
        await readable.wait()
        loop.remove_reader(sock)
        data, ancillary, _, _ = sock.recvmsg(65536, 1024)
        fds = array.array("i", ancillary[0][2])
        seen.extend([json.loads(data), len(fds)])
        for fd in fds:
            os.close(fd)
        await loop.sock_sendall(sock, GOOD)

    sentry = Sentry(answer)
    await sentry.call("Network.X", {"b": 1}, fds=[0, 1])
    assert seen == [{"method": "Network.X", "arg": {"b": 1}}, 2]
    await sentry.close()


async def test_a_refusal_carries_the_reason() -> None:
    sentry = Sentry(says(b'{"success":false,"err":"no such container"}'))
    with pytest.raises(UrpcRefused, match="no such container"):
        await sentry.call("X")
    await sentry.close()


@pytest.mark.parametrize(
    "answer",
    [
        says(b"", then_wait=False),
        says(b'{"success":tr', then_wait=False),
        says(b"[1]}", then_wait=False),
        says(b"\xff\xfe}", then_wait=False),
    ],
)
async def test_nonsense_is_an_error_and_the_next_call_starts_afresh(answer: Answer) -> None:
    sentry = Sentry(answer, says(GOOD))
    with pytest.raises(UrpcBroken):
        await sentry.call("X")
    assert await sentry.call("X") == {"a": "}"}
    await sentry.close()


async def test_an_endless_answer_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(urpc, "REPLY_MAX", 100_000)
    sentry = Sentry(says(*[b"x" * 60_000] * 2))
    with pytest.raises(UrpcBroken, match="too long"):
        await sentry.call("X")
    await sentry.close()


async def test_silence_is_an_error() -> None:
    sentry = Sentry(says(b"{"), says(GOOD))
    with pytest.raises(UrpcBroken, match="not answered"):
        await sentry.call("X", timeout_s=0.05)
    assert await sentry.call("X") == {"a": "}"}
    await sentry.close()


async def test_the_answer_to_a_cancelled_call_is_nobody_elses() -> None:
    sentry = Sentry(says(b"{"), says(GOOD))
    call = asyncio.ensure_future(sentry.call("X"))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert await sentry.call("Y") == {"a": "}"}
    await sentry.close()


async def test_calls_do_not_wait_for_each_other() -> None:
    slow_may_go = asyncio.Event()

    async def slow(sock: socket.socket) -> None:
        await slow_may_go.wait()
        await says(GOOD)(sock)

    sentry = Sentry(slow, says(GOOD))
    first = asyncio.ensure_future(sentry.call("Checkpoint"))
    await asyncio.sleep(0)
    await sentry.call("Pause")
    assert not first.done()
    slow_may_go.set()
    await first
    await sentry.close()


async def test_a_call_leaves_no_connection_behind() -> None:
    """A sentry that exits waits for every open one."""
    ended = asyncio.Event()

    async def answer(sock: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        await loop.sock_recv(sock, 65536)
        await loop.sock_sendall(sock, GOOD)
        assert await loop.sock_recv(sock, 1) == b""
        ended.set()

    sentry = Sentry(answer)
    await sentry.call("X")
    await asyncio.wait_for(ended.wait(), 5)
    await sentry.close()
