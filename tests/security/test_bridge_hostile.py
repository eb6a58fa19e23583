"""What a hostile program inside can do to the bridge, and what it can find: each claim with its attack."""

from __future__ import annotations

import base64
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from e2b import Sandbox
from joserfc import jwt
from joserfc.jwk import OctKey
from tests.acceptance.bridge_upstreams import ACCESS_TOKEN, NETWORK, Upstreams, upstreams
from tests.acceptance.bridged import (
    AWS,
    CURL,
    OAUTH,
    SECRET,
    TOKEN,
    bridged,
    bridges,
    call,
    code,
    events,
    new_box,
    run,
)
from tests.acceptance.conftest import Server
from tests.acceptance.needles import forms_of, search
from tests.postgres import Postgres

from wardian.bridge.passes import Holder, Mint
from wardian.bridge.service import BRIDGE_ADDRESS, stand_in_address
from wardian.bridge.supervisor import UID
from wardian.vault import keys

Make = Callable[..., Sandbox]
VAULT_KEY = os.urandom(32).hex()
ENGINE_PASSWORD = os.urandom(16).hex()
WAIT_ON_A_SOCKET = r"""python3 -c '
import os, socket, ssl
raw = socket.create_connection(("api.test", 443))
sock = ssl.create_default_context().wrap_socket(raw, server_hostname="api.test")
head = ["GET /socket HTTP/1.1", "Host: api.test", "Upgrade: websocket", "Connection: Upgrade",
        "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        "Authorization: Bearer " + os.environ["WARDIAN_TOKEN"], "", ""]
sock.sendall("\r\n".join(head).encode())
assert b" 101 " in sock.recv(4096)
print("open", flush=True)
try:
    sock.recv(1)
except OSError:
    pass
print("closed", flush=True)
'"""
ASK = f"{CURL} -H 'Authorization: Bearer %s' http://bridge.wardian.internal/api/echo"


@pytest.fixture(scope="module")
def far(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Upstreams]:
    with upstreams(tmp_path_factory.mktemp("upstreams")) as made:
        yield made


@pytest.fixture(scope="module")
def server(far: Upstreams, postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    given = {
        "WARDIAN_LOG": "debug",
        "WARDIAN_VAULT_KEY": VAULT_KEY,
        "WARDIAN_ENGINE_URL": postgres.new_database().replace("postgres@", f"postgres:{ENGINE_PASSWORD}@"),
    }
    with bridged(far, tmp_path_factory.mktemp("hostile"), **given) as started:
        yield started


@pytest.fixture(scope="module")
def box(server: Server, far: Upstreams) -> Iterator[Sandbox]:
    made = new_box(server, far, timeout=900)
    yield made
    made.kill()


@pytest.fixture
def make(server: Server, far: Upstreams) -> Iterator[Make]:
    made: list[Sandbox] = []

    def create(**options: Any) -> Sandbox:
        made.append(new_box(server, far, **options))
        return made[-1]

    yield create
    for each in made:
        each.kill()


def token_of(box: Sandbox) -> str:
    return run(box, "cat /run/wardian/token").strip()


def claims_of(token: str) -> dict[str, Any]:
    body = token.split(".")[1]
    told: dict[str, Any] = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
    return told


def coded(part: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode()


def holder(claims: dict[str, Any], **changed: Any) -> Holder:
    told = {**claims, "sandbox": claims["sub"], **changed}
    return Holder(told["tenant"], told["agent"], told["run"], told["sandbox"], told["epoch"])


def refused(server: Server, box: Sandbox, token: str, expected: str) -> None:
    """The token opens nothing, and that is on record."""
    assert code(run(box, ASK % token)) == expected
    last = events(server, box)[-1]
    assert (last["allowed"], last["reason"]) == (False, expected)


def test_tokens_that_are_forged_changed_or_over_open_nothing(
    server: Server, box: Sandbox, far: Upstreams
) -> None:
    token, secret = token_of(box), keys.parse((server.data / "tokens.key").read_text()).secret
    claims, (head, body, signature) = claims_of(token), token.split(".")
    public = Ed25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw()
    own = Mint(secret, 60)
    far.seen.clear()
    for bad in (
        f"{head}.{coded({**claims, 'tenant': 'other'})}.{signature}",  # a changed claim
        f"{coded({'alg': 'none'})}.{body}.",
        f"{coded({'alg': 'none'})}.{body}.{signature}",
        jwt.encode({"alg": "HS256"}, claims, OctKey.import_key(public)),  # the public key as a secret
        Mint(os.urandom(32), 60).make(holder(claims)),  # somebody else's key
        f"{head}.{body}.",
        "x.y.z",
    ):
        refused(server, box, bad, "token_forged")
    refused(server, box, "x" * 5000, "token_malformed")
    refused(server, box, own.make(holder(claims, sandbox="iother")), "token_of_another_sandbox")
    refused(server, box, own.make(holder(claims, tenant="other")), "token_of_another_sandbox")
    refused(server, box, own.make(holder(claims, epoch=claims["epoch"] - 1)), "token_of_another_epoch")
    refused(server, box, own.make(holder(claims, run="other")), "token_of_another_run")
    refused(server, box, Mint(secret, 60, lambda: 1000.0).make(holder(claims)), "token_expired")
    assert code(run(box, f"{CURL} http://bridge.wardian.internal/api/echo")) == "token_missing"
    assert far.seen == []
    assert json.loads(run(box, ASK % own.make(holder(claims))))["path"] == "/echo"  # so it was not the rest


def test_a_token_from_another_sandbox_is_worth_nothing(server: Server, box: Sandbox, make: Make) -> None:
    refused(server, make(), token_of(box), "token_of_another_sandbox")


def test_a_token_out_of_a_snapshot_is_refused_after_the_resume(server: Server, make: Make) -> None:
    box = make()
    old = token_of(box)
    box.commands.run(
        f"while [ ! -e /tmp/go ]; do sleep 0.1; done; {CURL} {TOKEN} $WARDIAN_BRIDGE_URL/api/echo >/tmp/said",
        background=True,
    )
    box.pause()
    box = box.connect(timeout=120)
    refused(server, box, old, "token_of_another_epoch")
    assert token_of(box) != old
    assert json.loads(run(box, ASK % token_of(box)))["path"] == "/echo"
    # A program that slept through it still has the old one in its environment.
    box.files.write("/tmp/go", "")
    said = run(box, "while [ ! -s /tmp/said ]; do sleep 0.1; done; cat /tmp/said")
    assert code(said) == "token_of_another_epoch"
    # A command begun now has the new one.
    assert json.loads(run(box, f"{CURL} {TOKEN} $WARDIAN_BRIDGE_URL/api/echo"))["path"] == "/echo"


def test_a_fork_and_a_sandbox_from_a_snapshot_have_tokens_of_their_own(
    server: Server, box: Sandbox, make: Make
) -> None:
    old = token_of(box)
    snapshot = box.create_snapshot()
    child = make(template=snapshot.snapshot_id)
    refused(server, child, old, "token_of_another_sandbox")
    assert json.loads(run(child, ASK % token_of(child)))["path"] == "/echo"
    assert json.loads(run(box, ASK % old))["path"] == "/echo"  # the parent goes on


def test_from_the_hosts_network_there_is_no_way_to_the_bridge(server: Server, box: Sandbox) -> None:
    """It listens nowhere, and has no network to listen on; only the server has its socket."""
    (pid,) = bridges(server)
    status = Path(f"/proc/{pid}/status").read_text()
    assert f"Uid:\t{UID}\t{UID}\t{UID}\t{UID}\n" in status
    assert "CapEff:\t0000000000000000\n" in status
    assert "NoNewPrivs:\t1\n" in status
    assert os.readlink(f"/proc/{pid}/ns/net") != os.readlink("/proc/self/ns/net")
    seen = subprocess.run(
        ["nsenter", "-t", str(pid), "-n", "ip", "-o", "link"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert len(seen) == 1
    assert "lo:" in seen[0]
    assert "state DOWN" in seen[0]
    for table in ("tcp", "tcp6", "udp", "udp6"):
        assert len(Path(f"/proc/{pid}/net/{table}").read_text().splitlines()) == 1
    directory = server.data / "bridge"
    assert {(each.stat().st_uid, each.stat().st_mode & 0o77) for each in directory.iterdir()} == {(UID, 0)}


def test_the_vaults_key_and_the_engines_password_are_shown_by_no_process(
    server: Server, box: Sandbox
) -> None:
    """It was given by the environment, and this sandbox was made since."""
    (pid,) = bridges(server)
    assert (
        "WARDIAN_LOG=debug" in Path(f"/proc/{pid}/environ").read_text()
    )  # so it can be read, and is its own
    for process in Path("/proc").glob("[0-9]*"):
        for shown in ("environ", "cmdline"):
            with suppress(OSError):
                found = (process / shown).read_bytes()
                assert VAULT_KEY.encode() not in found, process
                assert ENGINE_PASSWORD.encode() not in found, process
    held = [os.readlink(each) for each in Path(f"/proc/{server.process.pid}/fd").iterdir()]
    assert not any("memfd:secrets" in each for each in held)
    assert ENGINE_PASSWORD not in (server.data / "server.log").read_text()
    assert not (server.data / "bridge" / "vault.key").exists()


def raw(box: Sandbox, request: bytes) -> str:
    """Send bytes to the bridge as they are; what comes back."""
    box.files.write("/tmp/raw", request)
    return run(
        box,
        'python3 -c \'import socket; s=socket.create_connection(("bridge.wardian.internal",80)); '
        's.settimeout(5); s.sendall(open("/tmp/raw","rb").read()); '
        'print(b"".join(iter(lambda: s.recv(65536), b"")).decode(errors="replace"))\'',
    )


def test_requests_are_not_smuggled(box: Sandbox, far: Upstreams) -> None:
    token, host = token_of(box).encode(), b"Host: bridge.wardian.internal\r\n"
    allowed = b"Authorization: Bearer " + token + b"\r\n"
    smuggled = b"GET /private HTTP/1.1\r\nHost: api.test\r\n\r\n"
    far.seen.clear()
    for request in (
        # two lengths, a length and chunks, a strange coding, a folded header, a bare newline
        b"POST /api/a HTTP/1.1\r\n"
        + host
        + allowed
        + b"Content-Length: 0\r\nContent-Length: 50\r\n\r\n"
        + smuggled,
        b"POST /api/b HTTP/1.1\r\n"
        + host
        + allowed
        + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
        + smuggled,
        b"POST /api/c HTTP/1.1\r\n"
        + host
        + allowed
        + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n"
        + smuggled,
        b"GET /api/d HTTP/1.1\r\n" + host + allowed + b"X: a\r\n b: c\x00\r\n\r\n",
        b"GET /api/e HTTP/1.1\r\n" + host + b"Host: api.test\r\n" + allowed + b"\r\n",
        b"GET http://api.test/private HTTP/1.1\r\n" + host + allowed + b"\r\n",
        b"CONNECT api.test:443 HTTP/1.1\r\n" + host + allowed + b"\r\n",
        b"GET /api/../private HTTP/1.1\r\n" + host + allowed + b"\r\n",
        b"GET /api/%2e%2e/private HTTP/1.1\r\n" + host + allowed + b"\r\n",
        b"GET /api/a%2f..%2fprivate HTTP/1.1\r\n" + host + allowed + b"\r\n",
        b"\x16\x03\x01\x00\x05hello",
    ):
        said = raw(box, request)
        assert not said.startswith("HTTP/1.1 200"), request
    assert far.requests("/private") == []
    assert all(b"private" not in body for _, _, _, body in far.seen)
    raw(
        box, b"GET /api/f HTTP/1.1\r\n" + host + allowed + b"X-A: b\rInjected: c\r\nConnection: close\r\n\r\n"
    )
    assert all("injected" not in headers for _, _, headers, _ in far.seen)


WIDTHS: list[tuple[dict[str, Any], dict[str, str]]] = [
    # What the sandbox's rules are, and what then becomes of each request: "" is an answer of the upstream's.
    ({"allow_internet_access": False}, dict.fromkeys(("base", "host", "post", "link"), "unreachable")),
    ({"egress": "none"}, dict.fromkeys(("base", "host", "post", "link"), "unreachable")),
    ({"egress": "granted"}, {"base": "", "host": "", "post": "", "link": ""}),
    (
        {"allow_internet_access": False, "allowOut": ["other.test"]},
        {"base": "denied_name", "host": "denied_name", "link": ""},
    ),
    (
        {"denyOut": ["0.0.0.0/0"], "allowOut": ["*.other.test"]},
        {"base": "denied_name", "host": "denied_name", "link": "denied_name"},
    ),
    (
        {"egress": "granted", "egressRules": ["deny api.test:443 POST /echo*"]},
        {"base": "", "host": "", "post": "denied_rule", "link": ""},
    ),
    (
        {"egressRules": ["deny api.test GET,HEAD", "allow other.test:443 GET /echo/*", "deny other.test"]},
        {"base": "denied_rule", "host": "denied_rule", "post": "", "link": "denied_rule"},
    ),
    ({"egressRules": ["allow api.test:80", "deny *:443"]}, {"base": "denied_rule", "host": "denied_rule"}),
    ({"denyOut": [NETWORK]}, {"base": "denied_by_rule", "host": "denied_by_rule", "link": "denied_by_rule"}),
    ({"egress": "granted", "denyOut": [NETWORK]}, {"base": "denied_by_rule", "link": "denied_by_rule"}),
    ({"egress": "granted", "egressRules": [f"deny {NETWORK}:443 POST"]}, {"host": "", "post": "denied_rule"}),
]


def test_a_grant_opens_no_more_than_the_sandboxs_own_rules_let_it(
    server: Server, make: Make, far: Upstreams
) -> None:
    box = make()
    asks = {
        "base": f"{CURL} {TOKEN} http://bridge.wardian.internal/api/echo",
        "host": f"{CURL} {TOKEN} https://api.test/echo",
        "post": f"{CURL} {TOKEN} -d x=1 https://api.test/echo",
        "link": f"{CURL} https://other.test/echo",
    }
    box.commands.run(f"nohup {WAIT_ON_A_SOCKET} >/tmp/socket 2>&1 &")
    run(box, "until grep -q open /tmp/socket; do sleep 0.02; done")
    for width, expected in WIDTHS:
        rules = {"dnsServers": [far.names], **width}
        call(server, "PUT", f"/sandboxes/{box.sandbox_id}/network", rules)
        for ask, outcome in expected.items():
            far.seen.clear()
            said = run(box, asks[ask])
            if outcome == "unreachable":
                assert "curl: (" in said, (width, ask, said)
            else:
                got = "" if not outcome and json.loads(said)["path"] == "/echo" else code(said)
                assert got == outcome, (width, ask, said)
            assert bool(far.seen) == (not outcome), (width, ask)
    # By address, where names are not told; and what was open before nothing was let through is cut.
    call(server, "PUT", f"/sandboxes/{box.sandbox_id}/network", {"egress": "none"})
    far.seen.clear()
    for address, port in ((BRIDGE_ADDRESS, 80), (stand_in_address("api.test"), 443)):
        assert "curl: (" in run(box, f"{CURL} -k telnet://{address}:{port} </dev/null")
    assert far.seen == []
    assert "closed" in run(box, "until grep -q closed /tmp/socket; do sleep 0.02; done; cat /tmp/socket")


def test_a_wildcard_is_never_wider_than_written(
    box: Sandbox, server: Server, make: Make, far: Upstreams
) -> None:
    for host in ("a.wild.test", "deep.a.wild.test", "A.Wild.Test"):
        far.seen.clear()
        assert json.loads(run(box, f"{CURL} https://{host}/echo"))["path"] == "/echo", host
        assert far.seen[-1][2]["authorization"] == f"Bearer {SECRET}"
        assert far.seen[-1][2]["host"] == host.lower()
    assert events(server, box)[-1]["host"] == "a.wild.test"
    for host in ("wild.test", "tamewild.test", "a.wild.test.evil.test"):
        far.seen.clear()
        assert json.loads(run(box, f"{CURL} -k https://{host}/echo"))["path"] == "/echo", host
        assert "authorization" not in far.seen[-1][2], host
    # One name's address is not another's, whatever is said there; and nobody's where nobody asked for it.
    far.seen.clear()
    at = stand_in_address("a.wild.test")
    for host in ("deep.a.wild.test", "api.test", "wild.test"):
        assert "curl: (35)" in run(box, f"{CURL} -k --resolve {host}:443:{at} https://{host}/echo"), host
    said = run(box, f"{CURL} -H 'Host: deep.a.wild.test' https://a.wild.test/echo")
    assert code(said) == "host_mismatch"
    assert "curl: (" in run(make(), f"{CURL} -k --resolve a.wild.test:443:{at} https://a.wild.test/echo")
    assert code(run(box, f"{CURL} {TOKEN} http://bridge.wardian.internal/wild/echo")) == "grant_is_wildcard"
    assert far.seen == []


def test_a_path_is_judged_to_its_end(box: Sandbox, far: Upstreams) -> None:
    """What stands behind any number of characters is part of it."""
    far.seen.clear()
    long = "/echo/" + "x" * 5000
    assert code(run(box, f"{CURL} --path-as-is https://other.test{long}/../../private")) == "not_granted"
    assert far.seen == []
    assert json.loads(run(box, f"{CURL} https://other.test{long}"))["path"] == long


def test_the_handshake_names_the_host_and_the_upstream_proves_its_own(
    server: Server, box: Sandbox, far: Upstreams
) -> None:
    stand_in = run(box, "getent ahostsv4 api.test | head -1 | cut -d' ' -f1").strip()
    assert stand_in.startswith("198.19.")
    # Another name on the same address: no handshake.
    said = run(box, f"{CURL} -k --resolve evil.test:443:{stand_in} {TOKEN} https://evil.test/echo")
    assert "curl: (35)" in said
    # A name that its certificate does not have: nothing is sent.
    grant = {"name": "false", "secret": "api-key", "host": "false.test", "injector": {"kind": "bearer"}}
    call(server, "POST", "/wardian/grants", grant)
    try:
        far.seen.clear()
        assert code(run(box, f"{CURL} {TOKEN} $WARDIAN_BRIDGE_URL/false/echo")) == "upstream_not_trusted"
        assert far.seen == []
    finally:
        call(server, "DELETE", "/wardian/grants/false")


def test_no_secret_is_ever_in_a_sandbox_or_in_what_is_written_down(
    server: Server, make: Make, far: Upstreams
) -> None:
    box = make()
    for path in ("api/echo", "query/echo", "idp/echo", "aws/echo", "api/cookies", "api/nothing?x=1"):
        run(box, f"{CURL} -o /tmp/out {TOKEN} $WARDIAN_BRIDGE_URL/{path}; cat /tmp/out")
    run(box, f"{CURL} {TOKEN} https://api.test/echo; {CURL} https://other.test/echo")
    assert far.requests("/echo")  # they were used
    run(box, "sync")
    box.pause()  # memory and disk, on ours
    wanted = [SECRET, OAUTH["client_secret"], ACCESS_TOKEN, AWS["secret_access_key"], "fresh-session-token"]
    forms = [form for value in wanted for form in forms_of(value)]
    names = ("snapshots", "events", "wardian.db", "wardian.db-wal", "server.log")
    assert search([server.data / name for name in names], forms) == {}
    assert any((server.data / "snapshots").rglob("*"))
    for process in (server.process.pid, *bridges(server)):
        environment = Path(f"/proc/{process}/environ").read_bytes()
        assert not any(form in environment for form in forms)
