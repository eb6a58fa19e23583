"""What runs may use through the bridge, and whose: an agent's grants and budgets."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from tests.acceptance.conftest import serve, stop
from tests.acceptance.running import House

pytestmark = pytest.mark.timeout(300)


class Counting(BaseHTTPRequestHandler):
    """Answers, and counts on its server."""

    def do_GET(self) -> None:
        self.server.calls += 1  # type: ignore[attr-defined]
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, format: str, *args: object) -> None:
        """Not to the test's output."""


@contextmanager
def counting() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Counting)
    server.calls = 0  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


ASKS = """
import urllib.error, urllib.request
def ask():
    token = open("/run/wardian/token").read().strip()
    try:
        asked = urllib.request.Request(
            "http://bridge.wardian.internal/far/", headers={"Authorization": "Bearer " + token}
        )
        return urllib.request.urlopen(asked, timeout=20).status
    except urllib.error.HTTPError as error:
        return json.loads(error.read())["error"]["code"]
    except OSError as error:
        return type(error).__name__
out = [ask()]
if run.input:
    out += run.call("spender", run.input - 1)
out.append(ask())
run.result(out)
"""


def test_what_an_agent_may_use_counts_for_all_that_come_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WARDIAN_ALLOWED_NETWORKS", "127.0.0.0/8")
    monkeypatch.setenv("WARDIAN_DRIVERS", "gvisor")
    house = House(serve(tmp_path))
    try:
        with counting() as far:
            house.http.post("/secrets", json={"name": "key", "value": "sk-of-the-far-one-1234"})
            grant = {
                "name": "far",
                "secret": "key",
                "agent": "spender",
                "host": "localhost",
                "port": far.server_address[1],
                "tls": False,
                "intercept": False,
                "injector": {"kind": "bearer"},
            }
            assert house.call("POST", "/grants", grant).is_success
            house.freeze("spender", ASKS, budget={"calls": 3})
            told = house.end(house.begin("spender", 1))
            # Parent, child, child; then the parent's budget is used up, though its child's own is not.
            assert told["result"] == [200, 200, 200, "budget_exceeded"]
            assert far.calls == 3  # type: ignore[attr-defined]
            assert house.end(house.begin("spender", 0))["result"] == [200, 200]  # another tree's budget
            house.freeze("other", ASKS)
            refused = house.end(house.begin("other", 0))["result"]
            assert 200 not in refused  # a grant for one agent is not another's
            assert far.calls == 5  # type: ignore[attr-defined]
    finally:
        house.http.close()
        stop(house.server)
