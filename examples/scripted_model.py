"""A stand-in for a model and for a team's board, when no key is at hand: `python examples/scripted_model.py`.

It speaks OpenAI's chat completions, streamed word by word, and says what its script says: the n-th message of
the assistant in a conversation is the script's n-th line, whoever asks. It counts. It can be told to fail, to
be slow, or to break off, and knows what an Idempotency-Key is: what was done under it is not done again.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

KEY = "sk-scripted-do-not-let-me-in-7391"
"""What it wants as a bearer: the sandbox never has it."""

BODY_MAX = 4 << 20
HOLD_S = 120.0

CODE = """
import csv
rows = list(csv.DictReader(open("data.csv")))
print(sum(float(row["sales"]) for row in rows))
"""
ANSWER = "Sales were 60 in three months, and grew in each of them."
SCRIPT: Sequence[dict[str, Any]] = (
    {"text": "First the numbers.", "calls": [("run_code", {"code": CODE})]},
    {
        "text": "Now a picture, and a word to the team.",
        "calls": [
            ("make_chart", {"title": "Sales", "labels": ["Jan", "Feb", "Mar"], "values": [10, 20, 30]}),
            ("publish", {"headline": "Sales are growing"}),
        ],
    },
    {"text": ANSWER},
)


@dataclass
class Hold:
    """A call that stops half-way until ``go`` is set; ``reached`` once it is there."""

    reached: threading.Event = field(default_factory=threading.Event)
    go: threading.Event = field(default_factory=threading.Event)


@dataclass
class ScriptedModel:
    """``done`` counts what was really done, by ``turn 1``… and ``post``; ``asked`` every request for it.

    ``faults`` are what becomes of the next requests for something: a status, or ``cut`` in the middle.
    """

    script: Sequence[dict[str, Any]] = SCRIPT
    word_s: float = 0.0
    asked: Counter[str] = field(default_factory=Counter)
    done: Counter[str] = field(default_factory=Counter)
    posts: list[str] = field(default_factory=list)
    strangers: int = 0
    faults: dict[str, deque[int | str]] = field(default_factory=lambda: defaultdict(deque))
    holds: dict[str, Hold] = field(default_factory=dict)
    _answered: dict[str, bytes] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __enter__(self) -> Self:
        self._server = _Server(("127.0.0.1", 0), _handler(self))
        self.port: int = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for hold in self.holds.values():
            hold.go.set()
        self._server.shutdown()
        self._server.server_close()

    def hold(self, what: str) -> Hold:
        """Stop the next answer to ``what`` in the middle."""
        self.holds[what] = Hold()
        return self.holds[what]

    def forget(self) -> None:
        """Count from nothing."""
        for counted in (self.asked, self.done, self.posts, self.faults, self.holds):
            counted.clear()

    def fault(self, what: str) -> int | str | None:
        """What is wrong with this request, of which there is one more now."""
        with self._lock:
            self.asked[what] += 1
            return self.faults[what].popleft() if self.faults[what] else None

    def once(self, what: str, key: str, answer: bytes, post: str | None = None) -> bytes:
        """Do it, unless it was done under that key: the answer of that time then."""
        with self._lock:
            if key and key in self._answered:
                return self._answered[key]
            self.done[what] += 1
            if post is not None:
                self.posts.append(post)
            if key:
                self._answered[key] = answer
            return answer


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Whoever asked went away."""


def _handler(world: ScriptedModel) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            return None

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(min(int(self.headers["Content-Length"]), BODY_MAX)))
            if self.headers.get("Authorization") != f"Bearer {KEY}":
                world.strangers += 1
                self._json(401, {"error": {"message": "wrong key"}})
            elif self.path == "/v1/chat/completions":
                said = sum(message["role"] == "assistant" for message in body["messages"])
                self._about(f"turn {said + 1}", lambda: self._stream(said, body))
            elif self.path == "/posts":
                self._about("post", lambda: self._post(body))
            else:
                self._json(404, {"error": {"message": "no such path"}})

        def _about(self, what: str, answer: Any) -> None:
            self._what, self._fault = what, world.fault(what)
            if isinstance(self._fault, int):
                self._json(self._fault, {"error": {"message": "not now"}}, {"Retry-After": "0"})
            else:
                answer()

        @property
        def _key(self) -> str:
            return self.headers.get("Idempotency-Key", "")

        def _post(self, body: Any) -> None:
            number = len(world.posts) + 1
            told = world.once("post", self._key, json.dumps({"post": number}).encode(), body["headline"])
            self._wait()
            self._json(201, json.loads(told))

        def _stream(self, said: int, body: Any) -> None:
            line = world.script[min(said, len(world.script) - 1)]
            events = list(_chunks(line, said, body["model"]))
            world.once(self._what, self._key, b"")
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for number, event in enumerate([*events, "[DONE]"]):
                if number == len(events) // 2:
                    if self._fault == "cut":
                        self.close_connection = True
                        return
                    self._wait()
                self._chunk(f"data: {event}\n\n".encode())
                time.sleep(world.word_s)
            self.wfile.write(b"0\r\n\r\n")

        def _wait(self) -> None:
            if (hold := world.holds.pop(self._what, None)) is not None:
                hold.reached.set()
                hold.go.wait(HOLD_S)

        def _chunk(self, data: bytes) -> None:
            self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
            self.wfile.flush()

        def _json(self, status: int, told: Any, headers: dict[str, str] | None = None) -> None:
            data = json.dumps(told).encode()
            self.send_response(status)
            for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    return Handler


def _chunks(line: dict[str, Any], said: int, model: str) -> Iterator[str]:
    """The events of a line, as that API has them: word by word, and the arguments of a call in pieces."""

    def chunk(delta: dict[str, Any], reason: str | None = None) -> str:
        choice = {"index": 0, "delta": delta, "finish_reason": reason}
        head = {"id": f"c{said}", "object": "chat.completion.chunk", "created": 1, "model": model}
        return json.dumps({**head, "choices": [choice]})

    for word in re.findall(r"\S+\s*", line["text"]):
        yield chunk({"content": word})
    for index, (name, arguments) in enumerate(line.get("calls", ())):
        head = {"index": index, "id": f"call-{said}-{index}", "type": "function"}
        yield chunk({"tool_calls": [{**head, "function": {"name": name, "arguments": ""}}]})
        text = json.dumps(arguments)
        for piece in (text[: len(text) // 2], text[len(text) // 2 :]):
            yield chunk({"tool_calls": [{"index": index, "function": {"arguments": piece}}]})
    yield chunk({}, "tool_calls" if line.get("calls") else "stop")


if __name__ == "__main__":
    with ScriptedModel(word_s=0.1) as model:
        print(f"http://localhost:{model.port}, key {KEY}; Ctrl-C ends it", flush=True)  # noqa: T201
        threading.Event().wait()
