"""``process.Process``: start, watch, feed and end the processes of a sandbox."""

from __future__ import annotations

import asyncio
import signal
from binascii import b2a_base64
from collections.abc import AsyncIterator, Mapping
from typing import Any

from wardian.api.envd.connect import Fields, RpcError, encode, invalid
from wardian.api.envd.defaults import directory_of
from wardian.api.envd.exchange import closing
from wardian.api.envd.faults import errno_of, rpc_error
from wardian.api.envd.plane import Plane
from wardian.api.envd.rpc import Call, ClientStream, ServerStream, Stream, Unary
from wardian.guest.guest import Exit, Guest, Output, Process, ProcessConfig
from wardian.model.errors import Unavailable, WardianError
from wardian.model.sandbox import LIVE
from wardian.sandboxes.surroundings import sandbox_environment

CHUNK_MAX = {"stdout": 32 * 1024, "stderr": 32 * 1024, "pty": 16 * 1024}
"""Most bytes of output in one message."""

DEFAULT_SIZE = (80, 24)
_SIZE_MAX = 65535
_SIGNALS = {"SIGNAL_SIGTERM": int(signal.SIGTERM), "SIGNAL_SIGKILL": int(signal.SIGKILL)}
_KEEPALIVE = b'{"event":{"keepalive":{}}}'
_DATA_HEAD = {
    channel: b'{"event":{"data":{"%s":"' % channel.encode() for channel in ("stdout", "stderr", "pty")
}
_DATA_TAIL = b'"}}}'

Events = AsyncIterator[Output | Exit]


# -- streams


async def start(call: Call, request: Fields, stream: Stream) -> bytes:
    """Start a process and follow it. It outlives the connection, but not the call's deadline."""
    asked = request.nested("process")
    config = ProcessConfig(
        cmd=asked.text("cmd"),
        args=asked.texts("args"),
        envs=asked.text_map("envs"),
        cwd=directory_of(asked.optional_text("cwd"), call.sandbox),
        tag=request.optional_text("tag"),
    )
    if not config.cmd:
        raise invalid("process.cmd is required")
    pty = _size(request.nested("pty")) if "pty" in request else None
    try:
        process = await call.guest.exec(
            config,
            user=call.user,
            env={**call.plane.passes(call.sandbox), **sandbox_environment(call.sandbox)},
            pty=pty,
            stdin=request.flag("stdin", default=True),
        )
    except (WardianError, OSError) as error:
        raise _start_error(error) from error
    events = process.subscribe()
    call.record(
        "process.start",
        pid=process.pid,
        argv=[config.cmd, *config.args],
        env_names=sorted(config.envs),
        cwd=config.cwd,
        user=call.user,
        pty=pty is not None,
    )
    timer = _kill_at(call, process)
    try:
        end = await _follow(call, process, events, stream)
    except BaseException:
        # Somebody must see the end of it, for the record, when this connection will not.
        call.plane.spawn(_see_out(call, process, events))
        raise
    else:
        _record_exit(call, process)
        if timer is not None:
            timer.cancel()
        return end


async def connect(call: Call, request: Fields, stream: Stream) -> bytes:
    """Follow a process that runs already, or ended a moment ago."""
    process = _find(call.guest, request.nested("process"), ended=True)
    events = process.subscribe()
    async with closing(events):
        return await _follow(call, process, events, stream)


async def _follow(call: Call, process: Process, events: Events, stream: Stream) -> bytes:
    """Tell the start and the output; return the message of the end."""
    await stream.send(b'{"event":{"start":{"pid":%d}}}' % process.pid)
    async with stream.kept_alive(_KEEPALIVE, call.keepalive_s):
        async for event in events:
            if isinstance(event, Output):
                head, data = _DATA_HEAD[event.channel], memoryview(event.data)
                most = CHUNK_MAX[event.channel]
                for at in range(0, len(data), most):
                    await stream.send(head + b2a_base64(data[at : at + most], newline=False) + _DATA_TAIL)
            else:
                return encode({"event": {"end": _end(event)}})
    raise Unavailable("the process can no longer be followed", code="process_lost")


def _end(event: Exit) -> Mapping[str, Any]:
    end: dict[str, Any] = {"status": event.status}
    if event.exit_code:
        end["exitCode"] = event.exit_code
        end["error"] = event.status
    if event.exited:
        end["exited"] = True
    return end


def _kill_at(call: Call, process: Process) -> asyncio.TimerHandle | None:
    """End the process at the call's deadline, whether or not somebody still follows it."""
    if call.deadline is None:
        return None

    def strike() -> None:
        if process.exit is None:
            call.plane.spawn(_strike(call.plane, call.sandbox.id, process))

    return asyncio.get_running_loop().call_at(call.deadline, strike)


async def _strike(plane: Plane, sandbox_id: str, process: Process) -> None:
    sandbox = await plane.sandboxes.locate(sandbox_id)
    if sandbox is None or sandbox.state not in LIVE:
        return  # a paused sandbox is not woken for this
    async with plane.guest(sandbox_id) as guest:
        if guest.processes.get(process.pid) is process:
            await process.signal(signal.SIGKILL)


async def _see_out(call: Call, process: Process, events: Events) -> None:
    async for _ in events:
        pass
    _record_exit(call, process)


def _record_exit(call: Call, process: Process) -> None:
    if process.exit is not None:
        call.record(
            "process.exit", pid=process.pid, exit_code=process.exit.exit_code, status=process.exit.status
        )


def _start_error(error: WardianError | OSError) -> RpcError:
    """Whatever is wrong with the command, its directory or its program is wrong with the request."""
    told = rpc_error(error)
    if errno_of(error) is not None and told.code in ("not_found", "permission_denied"):
        return invalid(told.message)
    return told


# -- unary calls


async def list_processes(call: Call, _: Fields) -> Mapping[str, Any]:
    return {
        "processes": [
            {"config": _config(process.config), "pid": process.pid}
            | ({"tag": process.config.tag} if process.config.tag is not None else {})
            for process in call.guest.processes.values()
            if process.exit is None
        ]
    }


def _config(config: ProcessConfig) -> Mapping[str, Any]:
    told: dict[str, Any] = {"cmd": config.cmd}
    if config.args:
        told["args"] = list(config.args)
    if config.envs:
        told["envs"] = dict(config.envs)
    if config.cwd is not None:
        told["cwd"] = config.cwd
    return told


async def send_input(call: Call, request: Fields) -> Mapping[str, Any]:
    await _feed(_find(call.guest, request.nested("process")), request.nested("input"))
    return {}


async def stream_input(call: Call, messages: AsyncIterator[Fields]) -> Mapping[str, Any]:
    """Ordered input: the first message names the process, the others carry data (or keep alive)."""
    process: Process | None = None
    async for message in messages:
        if "start" in message:
            process = _find(call.guest, message.nested("start").nested("process"))
        elif "data" in message:
            if process is None:
                raise invalid("the first message must be start")
            await _feed(process, message.nested("data").nested("input"))
    return {}


async def _feed(process: Process, data: Fields) -> None:
    kind = "pty" if "pty" in data else "stdin"
    if (kind == "pty") != process.pty:
        wrong = "tty not assigned to process" if kind == "pty" else "process has a tty: send pty input"
        raise RpcError("failed_precondition", wrong)
    await process.write(data.blob(kind))


async def close_stdin(call: Call, request: Fields) -> Mapping[str, Any]:
    process = _find(call.guest, request.nested("process"))
    if process.pty:
        raise RpcError("failed_precondition", "a tty cannot be closed: send it 0x04")
    await process.close_stdin()
    return {}


async def send_signal(call: Call, request: Fields) -> Mapping[str, Any]:
    number = request.choice("signal", _SIGNALS)
    if not number:
        raise RpcError("unimplemented", "only SIGNAL_SIGTERM and SIGNAL_SIGKILL can be sent")
    process = _find(call.guest, request.nested("process"))
    await process.signal(number)
    call.record("process.signal", pid=process.pid, signal=number)
    return {}


async def update(call: Call, request: Fields) -> Mapping[str, Any]:
    process = _find(call.guest, request.nested("process"))
    if "pty" in request:
        if not process.pty:
            raise RpcError("failed_precondition", "tty not assigned to process")
        cols, rows = _size(request.nested("pty"))
        await process.resize(cols, rows)
    return {}


def _find(guest: Guest, selector: Fields, *, ended: bool = False) -> Process:
    """The process meant, by pid or tag. One that has ended counts only where ``ended`` allows it."""
    if "tag" in selector:
        tag = selector.text("tag")
        tagged = (process for process in guest.processes.values() if process.config.tag == tag)
        found = next((process for process in tagged if ended or process.exit is None), None)
        name = f"tag {tag}"
    else:
        pid = selector.number("pid")
        found = guest.processes.get(pid)
        name = f"pid {pid}"
    if found is None or (found.exit is not None and not ended):
        raise RpcError("not_found", f"process with {name} not found")
    return found


def _size(pty: Fields) -> tuple[int, int]:
    size = pty.nested("size")
    cols, rows = size.number("cols", maximum=_SIZE_MAX), size.number("rows", maximum=_SIZE_MAX)
    return cols or DEFAULT_SIZE[0], rows or DEFAULT_SIZE[1]


UNARY: Mapping[str, Unary] = {
    "/process.Process/List": list_processes,
    "/process.Process/SendInput": send_input,
    "/process.Process/CloseStdin": close_stdin,
    "/process.Process/SendSignal": send_signal,
    "/process.Process/Update": update,
}
SERVER_STREAMS: Mapping[str, ServerStream] = {
    "/process.Process/Start": start,
    "/process.Process/Connect": connect,
}
CLIENT_STREAMS: Mapping[str, ClientStream] = {"/process.Process/StreamInput": stream_input}
