"""What programs in runs speak to the platform with: it outlasts what breaks off, and brings in little."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from wardian.runs.lib import wardian_run

Platform = Callable[..., None]


def answer(status: int, told: object) -> bytes:
    body = json.dumps(told).encode()
    return f"HTTP/1.1 {status} So\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


@pytest.fixture
def platform(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Platform]:
    """Answers one connection with each of the bytes it is given, and closes it then."""
    (tmp_path / "token").write_text("t1\n")
    monkeypatch.setattr(wardian_run, "TOKEN_FILE", str(tmp_path / "token"))
    monkeypatch.setattr(wardian_run, "PAUSE_S", 0.001)
    monkeypatch.setattr(wardian_run, "_addresses", {})
    listener = socket.create_server(("127.0.0.1", 0))
    monkeypatch.setenv("WARDIAN_RUN_URL", f"http://127.0.0.1:{listener.getsockname()[1]}")
    threads: list[threading.Thread] = []

    def serve(answers: tuple[bytes, ...]) -> None:
        for said in answers:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(said)

    def answering(*answers: bytes) -> None:
        threads.append(threading.Thread(target=serve, args=(answers,)))
        threads[-1].start()

    yield answering
    for thread in threads:
        thread.join(5)
        assert not thread.is_alive()  # as often as it was to be asked
    listener.close()


def test_what_breaks_off_or_is_not_to_be_had_now_is_asked_again(platform: Platform) -> None:
    good = answer(200, {"run": "r1", "input": "ü" * 100_000})
    stale = answer(401, {"error_code": "token_of_another_epoch", "message": "old"})
    busy = answer(503, {"error_code": "unavailable", "message": "busy"})
    platform(b"", b"HTTP/1.1 20", good[:60_000], stale, busy, good)
    assert wardian_run._call("GET", "/run")["input"] == "ü" * 100_000


def test_who_waits_in_a_restored_machine_sees_it_by_the_token(
    platform: Platform, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wardian_run, "TIMEOUT_S", 3600)
    listener = socket.create_server(("127.0.0.1", 0))

    def restore() -> None:
        """A connection on which nothing will come; the next one leads to the platform."""
        silent, _ = listener.accept()
        silent.recv(65536)
        monkeypatch.setenv("WARDIAN_RUN_URL", url)
        (tmp_path / "token").write_text("t2")
        done.wait(10)
        silent.close()

    url, done = os.environ["WARDIAN_RUN_URL"], threading.Event()
    monkeypatch.setenv("WARDIAN_RUN_URL", f"http://127.0.0.1:{listener.getsockname()[1]}")
    platform(answer(200, {"run": "r1"}))
    thread = threading.Thread(target=restore)
    thread.start()
    assert wardian_run._call("GET", "/run") == {"run": "r1"}
    done.set()
    thread.join()
    listener.close()


def test_the_platforms_name_is_looked_up_once_and_again_when_nobody_is_there(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine is captured wherever its program is, and a query that was cut off takes five seconds."""
    names: list[str] = []
    port = int(os.environ["WARDIAN_RUN_URL"].rpartition(":")[2])
    with socket.create_server(("127.0.0.1", 0)) as free:
        nobody = free.getsockname()[1]

    def look_up(name: str, *_: object, **__: object) -> list[object]:
        names.append(name)
        there = nobody if len(names) == 2 else port
        return [(socket.AF_INET, socket.SOCK_STREAM, 0, "", ("127.0.0.1", there))]

    monkeypatch.setenv("WARDIAN_RUN_URL", "http://run.test")
    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    platform(*[answer(200, {"run": "r1"})] * 4)
    for _ in range(3):
        assert wardian_run._call("GET", "/run") == {"run": "r1"}
    assert names == ["run.test"]
    wardian_run._addresses.clear()
    assert wardian_run._call("GET", "/run") == {"run": "r1"}
    assert names == ["run.test"] * 3


def test_a_refusal_has_its_code(platform: Platform) -> None:
    platform(answer(409, {"error_code": "step_changed", "message": "another input (give it another name)"}))
    with pytest.raises(wardian_run.RunError, match="another name") as refused:
        wardian_run._call("POST", "/steps", {"key": "k"})
    assert refused.value.code == "step_changed"


def test_what_is_never_to_be_had_is_given_up(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wardian_run, "TRIES", 3)
    platform(*[answer(500, {"error_code": "internal", "message": "no"})] * 3)
    with pytest.raises(wardian_run.RunError, match="internal"):
        wardian_run._call("GET", "/run")


def test_outside_of_a_run_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wardian_run, "TOKEN_FILE", str(tmp_path / "none"))
    with pytest.raises(wardian_run.RunError) as refused:
        wardian_run._call("GET", "/run")
    assert refused.value.code == "not_a_run"


def test_it_brings_in_nothing_that_is_dear_to_start() -> None:
    program = "import sys, wardian_run; print(*sys.modules)"
    where = str(Path(wardian_run.__file__).parent)
    said = subprocess.run(
        [sys.executable, "-I", "-S", "-c", f"import sys; sys.path.append({where!r}); {program}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert {"http.client", "urllib.parse", "typing", "email"}.isdisjoint(said.stdout.split())
