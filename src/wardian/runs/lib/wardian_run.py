"""Durable runs, from inside: steps that are done once, waits that cost nothing, other agents.

Only Python's own library is needed. Everything here is HTTP with JSON at $WARDIAN_RUN_URL; whatever breaks
off (the machine was captured, restored, moved) is asked again, and answered as it was the first time.

    from wardian_run import run

    rows = run.step("fetch", fetch, run.input["url"])
    if run.ask("Publish it?") == "yes":
        run.step("publish", publish, rows)
    run.result({"rows": len(rows)})
"""

from __future__ import annotations

import errno
import json
import os
import select
import socket  # and no http.client: to bring that in takes a third of a second where starting is dear
import time

TYPE_CHECKING = False  # `typing` is dear as well
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

TOKEN_FILE = "/run/wardian/token"
TRIES, PAUSE_S, PAUSE_MAX_S = 60, 0.05, 0.5
"""How often what is refused for now is asked again. A server that is not there is waited for, that is all."""

RESOLVE_AT = 8
"""After how many calls that were cut off the platform's name is looked up again. Not for each: a query that
a capture cut off is asked again after five seconds, and nobody but the resolver may give it up sooner."""

TIMEOUT_S, GLANCE_S = 2, 0.1
"""Every call is answered at once. One that is not was cut off by a capture, and would be silent for ever: in
a machine that was restored, which a glance at the token shows, or else after two seconds."""

LOOK_S, LOOK_MAX_S = 0.01, 0.2


class RunError(Exception):
    """The platform refused: ``code`` is stable, the message says why."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code


class StepFailed(Exception):
    """Another agent's run did not succeed; ``failure`` says why."""

    def __init__(self, outcome: Any) -> None:
        super().__init__(f"run {outcome['run']} {outcome['state']}: {outcome['failure']}")
        self.outcome = outcome


class Run:
    """A run, for the program in it. ``call`` makes a call: a method, a path, and a body of JSON."""

    def __init__(self, call: Callable[[str, str, Any], Any]) -> None:
        self._call = call
        self._input: Any = None
        self._counts: dict[str, int] = {}

    @property
    def facts(self) -> Any:
        """What the run is now: its id, agent, version, trigger, epoch. A fork is another one than it was."""
        return self._call("GET", "/run", None)

    @property
    def input(self) -> Any:
        if self._input is None:
            self._input = (self.facts["input"],)
        return self._input[0]

    def step(
        self,
        name: str,
        do: Callable[..., Any],
        *arguments: Any,
        checkpoint: str | None = None,
        tries: int = 1,
    ) -> Any:
        """The result of ``do(*arguments)``, which is JSON and is made once, whatever happens afterwards.

        The same name again is another step: they are counted. ``checkpoint`` is ``always`` or ``never``, if
        not as the agent says; ``tries`` is how often it may raise before that is raised here.
        """
        key = self._key(name)
        left = tries
        while True:
            left -= 1
            begun = self._call("POST", "/steps", {"key": key, "input": _plain(arguments)})
            if begun["state"] == "done":
                return begun["result"]
            try:
                result = do(*arguments)
            except Exception as error:
                self._call("POST", "/steps/fail", {"key": key, "error": repr(error)})
                if left <= 0:
                    raise
            else:
                body = {"key": key, "result": result}
                if checkpoint is not None:
                    body["checkpoint"] = checkpoint
                return self._waited("/steps/commit", body)["result"]

    def checkpoint(self) -> None:
        """Keep the machine as it is now: what is lost later is what comes after."""
        self.step("checkpoint", lambda: None, checkpoint="always")

    def sleep(self, seconds: float, name: str = "sleep") -> None:
        """Rest. The machine does, too: nothing is billed but its disk."""
        self._waited("/sleep", {"key": self._key(name), "seconds": seconds})

    def ask(self, question: Any, name: str = "ask") -> Any:
        """What a human answers, with ``wardian run answer``."""
        return self._waited("/ask", {"key": self._key(name), "question": question})["answer"]

    def spawn(self, agent: str, input: Any = None, name: str = "spawn") -> str:
        """Begin a run of another agent; its id."""
        told = self._call("POST", "/spawn", {"key": self._key(name), "agent": agent, "input": input})
        return str(told["run"])

    def wait(self, run_id: str) -> Any:
        """The result of a run that was spawned. Raises StepFailed."""
        outcome = self._waited("/wait", {"key": f"wait:{run_id}", "run": run_id})["outcome"]
        if outcome["state"] != "succeeded":
            raise StepFailed(outcome)
        return outcome["result"]

    def call(self, agent: str, input: Any = None, name: str = "spawn") -> Any:
        """The result of another agent."""
        return self.wait(self.spawn(agent, input, name))

    def send(self, run_id: str, body: Any, topic: str = "", name: str = "send") -> None:
        """Tell another run of the same tree: a child, or the ``parent`` or ``root`` of the facts."""
        self._call("POST", "/send", {"key": self._key(name), "run": run_id, "topic": topic, "body": body})

    def receive(self, topic: str | None = None, seconds: float | None = None, name: str = "receive") -> Any:
        """The oldest message that was not received yet, as its ``body``, ``topic`` and ``from`` (the run, or
        None for somebody outside). None if there is none for so many seconds."""
        body = {"key": self._key(name), "topic": topic, "seconds": seconds}
        return self._waited("/receive", body)["message"]

    def emit(self, type: str, data: Any = None) -> None:
        """Tell whoever watches."""
        self._call("POST", "/emit", {"type": type, "data": data})

    def file(self, path: str, name: str | None = None) -> Any:
        """Hand a file over, as it is now: it is kept when the machine is gone, for `wardian run files`. Its
        ``{name, size, digest}``. The same name again takes the place of the file before."""
        body = {"name": name or os.path.basename(path), "path": os.path.abspath(path)}
        return self._waited("/files", body)["file"]

    def result(self, value: Any) -> None:
        """What the run is to return, once the program ends with 0."""
        self._call("POST", "/result", {"result": value})

    def _waited(self, path: str, body: Any) -> Any:
        """What a call is answered once there is an answer. The machine may be captured or rest meanwhile."""
        pause = LOOK_S
        while (said := self._call("POST", path, body)).get("state") in ("waiting", "committing"):
            self._waits(said["state"])
            time.sleep(pause)
            pause = min(pause * 2, LOOK_MAX_S)
        return said

    def _waits(self, state: str) -> None:
        """There is no answer yet."""

    def _key(self, name: str) -> str:
        count = self._counts[name] = self._counts.get(name, 0) + 1
        return name if count == 1 else f"{name}#{count}"


def _plain(value: Any) -> Any:
    """For the record, and to notice a changed program."""
    return json.loads(json.dumps(value, default=repr))


def _call(method: str, path: str, body: Any = None) -> Any:
    pause, left, cut_off = PAUSE_S, TRIES, 0
    while True:
        try:
            status, said = _once(method, path, body)
        except (OSError, ValueError, IndexError) as error:
            cut_off += 1
            if not cut_off % RESOLVE_AT:
                _addresses.clear()
            # Cut off, in the middle of an answer perhaps: the machine was captured, or is another one now.
            # Or nobody serves just now. But a name that there is not is that of a sandbox without a run.
            left -= isinstance(error, socket.gaierror) and error.errno == socket.EAI_NONAME
            if not left or not os.path.exists(TOKEN_FILE):
                raise RunError("not_a_run", f"this is no run's machine: {error}") from error
        else:
            if status < 300:
                return said
            left -= 1
            refused = RunError(said.get("error_code", "refused"), said.get("message", str(status)))
            if not left or (status < 500 and not refused.code.startswith("token_")):
                raise refused
        time.sleep(pause)
        pause = min(pause * 2, PAUSE_MAX_S)


def _once(method: str, path: str, body: Any) -> tuple[int, Any]:
    token = _token()
    place = os.environ.get("WARDIAN_RUN_URL", "http://run.wardian.internal").partition("://")[2].rstrip("/")
    host, _, port = place.partition(":")
    content = b"" if body is None else json.dumps(body).encode()
    lines = (
        f"{method} {path} HTTP/1.1",
        f"Host: {place}",
        f"Authorization: Bearer {token}",
        "Content-Type: application/json",
        f"Content-Length: {len(content)}",
        "Connection: close",
    )
    head = "".join(line + "\r\n" for line in (*lines, ""))
    family, address = _address(host, int(port or 80))
    with socket.socket(family, socket.SOCK_STREAM) as connection:
        _connect(connection, address, token)
        connection.sendall(head.encode() + content)
        status, said = _answer(connection, token)
    return status, json.loads(said or b"{}")


_addresses: dict[tuple[str, int], Any] = {}


def _address(host: str, port: int) -> Any:
    """A family, and what a socket of it connects to."""
    if (host, port) not in _addresses:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        _addresses[host, port] = family, address
    return _addresses[host, port]


def _connect(connection: socket.socket, address: Any, token: str) -> None:
    connection.settimeout(0)
    error = connection.connect_ex(address)
    if error == errno.EINPROGRESS:
        _glance(token, lambda: select.select([], [connection], [], GLANCE_S)[1])
        error = connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if error:
        raise OSError(error, os.strerror(error))
    connection.settimeout(TIMEOUT_S)


def _token() -> str:
    """Another one after every restore."""
    with open(TOKEN_FILE) as file:
        return file.read().strip()


def _answer(connection: socket.socket, token: str) -> tuple[int, bytes]:
    """Of the platform, which always says how long it is."""
    said = b""
    while b"\r\n\r\n" not in said:
        said += _more(connection, token)
    head, _, content = said.partition(b"\r\n\r\n")
    lengths = [line[15:] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    while len(content) < int((lengths or [b"0"])[0]):
        content += _more(connection, token)
    return int(head.split()[1]), content


def _more(connection: socket.socket, token: str) -> bytes:
    _glance(token, lambda: select.select([connection], [], [], GLANCE_S)[0])
    if data := connection.recv(65536):
        return data
    raise OSError("cut off")


def _glance(token: str, ready: Callable[[], Any]) -> None:
    """Until it is, or never will be."""
    for _ in range(round(TIMEOUT_S / GLANCE_S)):
        if ready():
            return
        if _token() != token:
            break
    raise OSError("silent")


run = Run(_call)
