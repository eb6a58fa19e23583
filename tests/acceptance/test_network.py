"""Network settings through the official SDK, on real machines, with a small world of our own to reach."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from e2b import ALL_TRAFFIC, Sandbox
from e2b.exceptions import SandboxException
from tests.acceptance.conftest import Server, serve, stop
from tests.acceptance.upstreams import DENIED, GOOD, NETWORK, OTHER, PASSWORD, USER, World, world
from typer.testing import CliRunner

from wardian.cli.main import app

Make = Callable[..., Sandbox]
TALK = """
import socket, sys
file = socket.create_connection((sys.argv[1], 2222), 5).makefile("rwb", 0)
print(file.readline())
file.write(sys.argv[2].encode() + b"\\n")
print(file.readline())
"""
CURL = "curl -sS --max-time 15 --connect-timeout 3"


@pytest.fixture(scope="module")
def far(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with world(tmp_path_factory.mktemp("world")) as made:
        yield made


@pytest.fixture(scope="module")
def server(far: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that may reach the little world."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WARDIAN_ALLOWED_NETWORKS", NETWORK)
        started = serve(tmp_path_factory.mktemp("network"))
    yield started
    stop(started)


@pytest.fixture
def make(server: Server) -> Iterator[Make]:
    made: list[Sandbox] = []

    def create(**options: Any) -> Sandbox:
        made.append(Sandbox.create(timeout=120, **access(server), **options))
        return made[-1]

    yield create
    for each in made:
        each.kill()


def access(server: Server) -> dict[str, Any]:
    return {"api_url": server.url, "sandbox_url": server.url, "api_key": server.key}


def only(far: World, *names: str, **more: Any) -> Any:
    """Rules that open names and nothing else, asked of our own name server."""
    return {"allow_out": list(names), "deny_out": [ALL_TRAFFIC], "dns_servers": [far.names], **more}


def update(sandbox: Sandbox, network: Any) -> None:
    sandbox.update_network(network)


def told(sandbox: Sandbox) -> Any:
    return sandbox.get_info().network


def run(sandbox: Sandbox, command: str) -> tuple[int, str]:
    """Exit code and output of a command that may fail."""
    result = sandbox.commands.run(f'{{ {command}; }} 2>&1; echo "=$?"', timeout=60)
    output, _, code = result.stdout.rpartition("=")
    return int(code), output.strip()


def test_only_allowed_names_are_reached_and_only_where_the_host_finds_them(make: Make, far: World) -> None:
    box = make(network=only(far, GOOD, "*.good.test"))
    assert run(box, f"{CURL} http://{GOOD}/") == (0, f"{far.home} {GOOD}")
    assert run(box, f"{CURL} -k https://{OTHER}/") == (0, f"{far.home} {OTHER}")
    far.reached.clear()
    for denied in (
        # An allowed name on an address of the program's own choosing.
        f"{CURL} --resolve {GOOD}:80:{far.elsewhere} http://{GOOD}/",
        f"{CURL} -k --resolve {GOOD}:443:{far.elsewhere} https://{GOOD}/",
        f"{CURL} http://{DENIED}/",  # not even resolved
        f"{CURL} --resolve {DENIED}:80:{far.elsewhere} http://{DENIED}/",
        f"{CURL} -k --resolve {DENIED}:443:{far.home} https://{DENIED}/",  # fronted on an allowed address
        f"{CURL} -H 'Host: {DENIED}' http://{GOOD}/",
        f"{CURL} http://{far.home}/",  # an address is no name
        f"{CURL} -k https://{far.elsewhere}/",
        f"{CURL} --proxy http://{GOOD}:80 http://{DENIED}/",
        f"{CURL} -p --proxy http://{GOOD}:80 http://{DENIED}/",
    ):
        assert run(box, denied)[0] != 0, denied
    assert far.reached == []
    assert DENIED not in far.asked


def test_other_protocols_go_to_addresses_that_were_given_out(make: Make, far: World) -> None:
    box = make(network=only(far, GOOD, "big.good.test"))
    talk = "python3 /tmp/talk.py"
    box.files.write("/tmp/talk.py", TALK)
    assert run(box, f"{talk} {far.home} again")[0] != 0  # not asked for yet
    assert run(box, f"{talk} {GOOD} again") == (0, "b'hello\\n'\nb'again\\n'")
    assert run(box, f"{talk} {far.home} again")[0] == 0
    code, said = run(box, f"{talk} {GOOD} 'GET http://{DENIED}/ HTTP/1.1'")  # its first words, late
    assert (code != 0 or said.endswith("b''"), said.startswith("b'hello")) == (True, True)
    assert run(box, "getent ahostsv4 big.good.test")[0] == 0  # over TCP: it did not fit a datagram


def test_addresses_are_allowed_and_denied_and_allow_wins(make: Make, far: World) -> None:
    box = make(network={"deny_out": [f"{far.home}/32", f"{far.elsewhere}/30"], "allow_out": [far.elsewhere]})
    assert run(box, f"{CURL} http://{far.elsewhere}/")[0] == 0
    assert run(box, f"{CURL} http://{far.home}/")[0] != 0
    assert run(box, f"{CURL} http://169.254.169.254/")[0] != 0
    update(box, {"allow_out": ["169.254.169.254", "10.0.0.0/8", far.home], "deny_out": [ALL_TRAFFIC]})
    assert run(box, f"{CURL} http://169.254.169.254/")[0] != 0  # no tenant opens what the server denies
    assert run(box, f"{CURL} http://{far.home}/")[0] == 0


def test_a_change_applies_at_once_and_cuts_what_it_forbids(make: Make, far: World) -> None:
    box = make(network=only(far, GOOD))
    talk = (
        f'python3 -uc \'import socket; s=socket.create_connection(("{GOOD}",2222)); f=s.makefile("rb");'
        " print(f.readline()); print(f.read())'"
    )
    lines: list[str] = []
    open_connection = box.commands.run(f"{talk} || echo broken", background=True)
    watching = iter(open_connection)
    lines.append(str(next(watching)[0]))
    assert "hello" in lines[0]
    update(box, only(far, DENIED))
    assert "broken" in "".join(str(out or "") for out, _, _ in watching)
    assert run(box, f"{CURL} http://{GOOD}/")[0] != 0
    assert run(box, f"{CURL} http://{DENIED}/")[0] == 0
    update(box, {"allow_internet_access": False})
    assert run(box, f"{CURL} http://{far.home}/")[0] != 0
    update(box, {})
    assert run(box, f"{CURL} http://{far.home}/")[0] == 0
    assert told(box) == {"allow_public_traffic": True}


def test_the_rules_survive_a_pause_and_a_fork_and_are_told(make: Make, far: World) -> None:
    settings = only(far, "elsewhere.test")
    box = make(network=lambda_settings(settings))
    assert told(box) == settings | {"allow_public_traffic": True}
    box.pause()
    update(box, only(far, GOOD))  # also while it sleeps
    box.connect()
    assert run(box, f"{CURL} http://{GOOD}/")[0] == 0
    assert run(box, f"{CURL} http://{far.elsewhere}/")[0] != 0
    (fork,) = box.fork()
    assert isinstance(fork, Sandbox)
    try:
        assert told(fork) == only(far, GOOD) | {"allow_public_traffic": True}
        assert run(fork, f"{CURL} http://{GOOD}/")[0] == 0
        assert run(fork, f"{CURL} http://{DENIED}/")[0] != 0
    finally:
        fork.kill()


def lambda_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """The same, said as the SDK's selectors."""
    return settings | {
        "allow_out": lambda _: settings["allow_out"],
        "deny_out": lambda context: [context.all_traffic],
    }


def test_connections_go_through_a_proxy_whose_password_is_nowhere(
    make: Make, far: World, server: Server
) -> None:
    proxy = {"address": f"{far.proxy}:1080", "username": USER, "password": PASSWORD}
    box = make(network=only(far, GOOD, egress_proxy=proxy))
    far.proxied.clear()
    assert run(box, f"{CURL} http://{GOOD}/") == (0, f"{far.home} {GOOD}")
    assert far.proxied == [(GOOD, 80)]  # by name: the proxy resolves it
    assert told(box)["egress_proxy"] == {"address": proxy["address"], "username": USER}
    update(box, {"egress_proxy": proxy})
    assert run(box, f"{CURL} http://{far.elsewhere}/")[0] == 0
    assert far.proxied[1:] == [(far.elsewhere, 80)]
    update(box, {"egress_proxy": proxy | {"password": "wrong"}})
    assert run(box, f"{CURL} http://{far.elsewhere}/")[0] != 0  # never around it
    secret = PASSWORD.encode()
    for path in (path for path in server.data.rglob("*") if path.is_file()):
        if path.suffix in (".db", ".log", ".jsonl", ".json") or "events" in path.parts or "wal" in path.name:
            assert secret not in path.read_bytes(), path
    with pytest.raises(SandboxException, match=r"10\.0\.0\.1:1080 may not be reached: proxy_denied"):
        make(network={"egress_proxy": {"address": "10.0.0.1:1080"}})


def test_ports_that_speak_tls_inside_are_reached(make: Make, server: Server) -> None:
    box = make(network={"https_ports": [8443], "mask_request_host": "${PORT}-mine.example.com"})
    box.files.write(
        "/tmp/serve.py",
        "import http.server, ssl\n"
        "class Handler(http.server.BaseHTTPRequestHandler):\n"
        "    def do_GET(self):\n"
        "        body = self.headers['Host'].encode()\n"
        "        self.send_response(200)\n"
        "        self.send_header('Content-Length', str(len(body)))\n"
        "        self.end_headers()\n"
        "        self.wfile.write(body)\n"
        "server = http.server.ThreadingHTTPServer(('127.0.0.1', 8443), Handler)\n"
        "context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)\n"
        "context.load_cert_chain('/tmp/both.pem')\n"
        "server.socket = context.wrap_socket(server.socket, server_side=True)\n"
        "print('ready', flush=True)\n"
        "server.serve_forever()\n",
    )
    run(box, "cd /tmp && openssl req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=x -keyout k -out c")
    run(box, "cat /tmp/k /tmp/c > /tmp/both.pem")
    serving = box.commands.run("python3 /tmp/serve.py", background=True)
    assert "ready" in str(next(iter(serving))[0])
    headers = {"E2b-Sandbox-Id": box.sandbox_id, "E2b-Sandbox-Port": "8443"}
    answer = httpx.get(server.url, headers=headers)
    assert (answer.status_code, answer.text) == (200, "8443-mine.example.com")
    assert told(box)["https_ports"] == [8443]


def test_every_decision_is_on_record(make: Make, far: World, server: Server) -> None:
    box = make(network=only(far, GOOD))
    run(box, f"{CURL} http://{GOOD}/")
    run(box, f"{CURL} --resolve {DENIED}:80:{far.home} http://{DENIED}/")
    answer = httpx.get(
        f"{server.url}/v2/sandboxes/{box.sandbox_id}/logs",
        headers={"X-API-KEY": server.key},
        params={"limit": 1000},
    )
    logged = json.dumps(answer.json())
    for trace in ("network.connect", "network.resolve", "allowed_name", "denied_name", "sandbox.network"):
        assert trace in logged


def test_the_command_line_shows_and_changes_the_rules(make: Make, far: World, server: Server) -> None:
    box = make(network=only(far, GOOD))

    def network(*options: str) -> tuple[int, str]:
        words = ["--url", server.url, "--api-key", server.key, "network", box.sandbox_id, *options]
        done = CliRunner().invoke(app, ["sandbox", *words])
        return done.exit_code, done.output

    code, shown = network()
    assert code == 0
    assert {f"allowed   {GOOD}", f"denied    {ALL_TRAFFIC}", f"dns       {far.names}"} <= set(
        shown.splitlines()
    )
    code, shown = network("--no-internet", "--allow", DENIED, "--dns", far.names, "--json")
    assert json.loads(shown)["allowOut"] == [DENIED]
    assert run(box, f"{CURL} http://{DENIED}/")[0] == 0
    assert run(box, f"{CURL} http://{GOOD}/")[0] != 0
    code, shown = network("--allow", DENIED)
    assert code != 0
    assert "ALL_TRAFFIC" in shown
    assert network("--internet")[0] == 0
    assert told(box) == {"allow_public_traffic": True}
    update(box, {"egress_proxy": {"address": f"{far.proxy}:1080", "username": USER, "password": PASSWORD}})
    assert network("--internet")[0] != 0  # not behind its owner's back
    assert network("--internet", "--drop-proxy")[0] == 0
    assert told(box) == {"allow_public_traffic": True}


def test_rules_survive_a_restart_of_the_server(far: World, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WARDIAN_ALLOWED_NETWORKS", NETWORK)
        first = serve(tmp_path)
        try:
            made = Sandbox.create(timeout=120, network=only(far, GOOD), **access(first))
        finally:
            stop(first)
        second = serve(tmp_path)
    try:
        box = Sandbox.connect(made.sandbox_id, **access(second))
        assert told(box) == only(far, GOOD) | {"allow_public_traffic": True}
        assert run(box, f"{CURL} http://{GOOD}/")[0] == 0
        assert run(box, f"{CURL} http://{far.elsewhere}/")[0] != 0
        box.kill()
    finally:
        stop(second)
    assert (tmp_path / "seal.key").stat().st_mode & 0o777 == 0o600
