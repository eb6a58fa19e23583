"""The bridge through real sandboxes: a secret is used by programs that never have it."""

from __future__ import annotations

import base64
import io
import json
import os
import signal
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from importlib import metadata
from typing import Any

import pytest
from e2b import Sandbox
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from tests.acceptance.bridge_upstreams import ACCESS_TOKEN, REFRESH_TOKEN, Upstreams, upstreams
from tests.acceptance.bridged import (
    CURL,
    SECRET,
    TOKEN,
    access,
    bridged,
    bridges,
    call,
    code,
    events,
    new_box,
    run,
)
from tests.acceptance.conftest import Server
from typer.testing import CliRunner

from wardian.cli.main import app

Make = Callable[..., Sandbox]


def wardian(server: Server, *words: str) -> Any:
    environment = {"WARDIAN_API_URL": server.url, "WARDIAN_API_KEY": server.key}
    done = CliRunner().invoke(app, [*words, "--json"], env=environment)
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def far(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Upstreams]:
    with upstreams(tmp_path_factory.mktemp("upstreams")) as made:
        yield made


@pytest.fixture(scope="module")
def server(far: Upstreams, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with bridged(far, tmp_path_factory.mktemp("bridge")) as started:
        yield started


@pytest.fixture
def make(server: Server, far: Upstreams) -> Iterator[Make]:
    made: list[Sandbox] = []

    def create(**options: Any) -> Sandbox:
        made.append(new_box(server, far, **options))
        return made[-1]

    yield create
    for each in made:
        each.kill()


@pytest.fixture(scope="module")
def box(server: Server, far: Upstreams) -> Iterator[Sandbox]:
    """One that tests share."""
    made = new_box(server, far, timeout=600)
    yield made
    made.kill()


def test_a_base_url_leads_to_the_host_with_the_secret_put_in(
    box: Sandbox, server: Server, far: Upstreams
) -> None:
    said = run(box, f"{CURL} {TOKEN} $WARDIAN_BRIDGE_URL/api/echo?a=1")
    told = json.loads(said)
    _, target, headers, _ = far.requests("/echo")[-1]
    assert (target, headers["authorization"], headers["host"]) == (
        "/echo?a=1",
        f"Bearer {SECRET}",
        "api.test",
    )
    # The upstream says the secret again, and the program does not see it.
    assert SECRET not in said
    assert told["headers"]["authorization"] == "Bearer " + "*" * len(SECRET)
    assert not any("wardian" in name for name in headers)
    # Some clients take a status line without a reason for none.
    said = run(box, f"{CURL} -i -H 'Expect: 100-continue' -d x {TOKEN} $WARDIAN_BRIDGE_URL/openai/echo")
    assert said.splitlines()[::2][:2] == ["HTTP/1.1 100 Continue", "HTTP/1.1 200 OK"], said
    said = run(box, f"{CURL} -i $WARDIAN_BRIDGE_URL/nothing/echo")
    assert said.startswith("HTTP/1.1 404 Not Found"), said
    run(box, f"{CURL} {TOKEN} $WARDIAN_BRIDGE_URL/api/echo?a=1")
    last = events(server, box)[-1]
    assert (last["allowed"], last["reason"], last["grant"], last["path"]) == (
        True,
        "run_token",
        "api",
        "/api/echo",
    )


def test_the_host_itself_is_intercepted_and_trusted_by_everything(box: Sandbox, far: Upstreams) -> None:
    for program in (
        f"{CURL} {TOKEN} https://api.test/echo",
        "python3 -c 'import os,urllib.request as u; print(u.urlopen(u.Request("
        '"https://api.test/echo", headers={"Authorization": "Bearer "+os.environ["WARDIAN_TOKEN"]}'
        ")).read().decode())'",
    ):
        far.seen.clear()
        assert json.loads(run(box, program))["path"] == "/echo", program
        assert far.requests("/echo")[-1][2]["authorization"] == f"Bearer {SECRET}"
    # A grant that needs no token: coming from the sandbox is enough.
    assert json.loads(run(box, f"{CURL} https://other.test/echo"))["path"] == "/echo"
    expected = base64.b64encode(f"x-access-token:{SECRET}".encode()).decode()
    assert far.requests("/echo")[-1][2]["authorization"] == f"Basic {expected}"


def test_hosts_that_are_not_granted_are_relayed_untouched(make: Make, far: Upstreams) -> None:
    box = make()
    far.seen.clear()
    said = run(box, f"{CURL} -k -H 'Authorization: Bearer mine' https://llm.test/echo")
    assert json.loads(said)["headers"]["authorization"] == "Bearer mine"
    issuer = run(box, f"{CURL} -kv https://llm.test/echo -o /dev/null | grep issuer")
    assert "CN=upstreams" in issuer


def _sdks(*names: str) -> bytes:
    """Packages and what they need, as this machine has them: inside is the same Python."""
    packed, waiting, seen = io.BytesIO(), list(names), set[str]()
    with tarfile.open(fileobj=packed, mode="w:gz", compresslevel=1) as archive:
        while waiting:
            name = canonicalize_name(waiting.pop())
            if name in seen:
                continue
            seen.add(name)
            try:
                distribution = metadata.distribution(name)
            except metadata.PackageNotFoundError:
                continue  # for another platform
            needs = [Requirement(text) for text in distribution.requires or ()]
            waiting += [need.name for need in needs if not need.marker or need.marker.evaluate({"extra": ""})]
            for file in distribution.files or ():
                if file.parts[0] != ".." and file.suffix != ".pyc":
                    archive.add(str(file.locate()), f"sdks/{file}")
    return packed.getvalue()


ASK = """
import openai, anthropic
client = openai.OpenAI()
asked = dict(model="gpt-x", messages=[{"role": "user", "content": "hi"}])
print(client.chat.completions.create(**asked).choices[0].message.content)
chunks = client.chat.completions.create(stream=True, **asked)
print("".join(chunk.choices[0].delta.content for chunk in chunks if chunk.choices))
client = anthropic.Anthropic()
asked = dict(model="claude-x", max_tokens=9, messages=[{"role": "user", "content": "hi"}])
print(client.messages.create(**asked).content[0].text)
with client.messages.stream(**asked) as stream:
    print("".join(stream.text_stream))
"""


def test_the_openai_and_anthropic_sdks_work_unmodified(box: Sandbox, server: Server, far: Upstreams) -> None:
    box.files.write("/tmp/sdks.tgz", _sdks("openai", "anthropic"))
    box.files.write("/tmp/ask.py", ASK)
    far.seen.clear()
    said = run(box, "tar -xzf /tmp/sdks.tgz -C /tmp && PYTHONPATH=/tmp/sdks python3 /tmp/ask.py")
    assert said.splitlines() == [
        "hello from the model",
        "one two three",
        "hello from the other model",
        "streamed",
    ], said
    assert {each[2].get("authorization") for each in far.requests("/v1/chat/completions")} == {
        f"Bearer {SECRET}"
    }
    assert {each[2].get("x-api-key") for each in far.requests("/v1/messages")} == {SECRET}
    used = [
        (e.get("model"), e.get("tokens_in"), e.get("tokens_out"))
        for e in events(server, box, "bridge.answer")
    ]
    assert used[-4:] == [("gpt-x", 11, 7), ("gpt-x", 11, 7), ("claude-x", 5, 3), ("claude-x", 5, 9)]


def test_injectors(box: Sandbox, server: Server, far: Upstreams) -> None:
    run(box, f"{CURL} {TOKEN} $WARDIAN_BRIDGE_URL/query/echo?b=2")
    assert far.requests("/echo")[-1][1] == f"/echo?b=2&key={SECRET}"
    far.seen.clear()
    said = [run(box, f"{CURL} {TOKEN} https://idp.test/echo") for _ in range(2)]
    assert [each[2]["authorization"] for each in far.requests("/echo")] == [f"Bearer {ACCESS_TOKEN}"] * 2
    assert ACCESS_TOKEN not in "".join(said)
    ((_, _, headers, body),) = far.requests("/token")  # once, for both
    assert b"grant_type=client_credentials" in body
    assert base64.b64decode(headers["authorization"].removeprefix("Basic ")) == b"me:cs-4411-secret"
    assert call(server, "GET", "/secrets/oauth")["currentVersion"] == 2  # the new refresh token is kept
    # An answer with fresh tokens, asked for by a program.
    sealed = json.loads(run(box, f"{CURL} {TOKEN} -X POST https://idp.test/token"))
    assert (sealed["access_token"], sealed["refresh_token"]) == ("sealed-by-wardian",) * 2
    assert REFRESH_TOKEN not in json.dumps(sealed)


def test_cookies_stay_outside_and_redirects_are_not_followed(box: Sandbox) -> None:
    said = run(box, f"{CURL} -i {TOKEN} $WARDIAN_BRIDGE_URL/api/cookies")
    assert "200" in said
    assert "cookie" not in said.lower().replace("/cookies", "")
    said = run(box, f"{CURL} -i {TOKEN} $WARDIAN_BRIDGE_URL/api/redirect")
    assert "302" in said
    assert "https://other.test/echo" in said


GIT = """
set -e
export GIT_TERMINAL_PROMPT=0 HOME=/tmp/git-home
rm -rf /tmp/app $HOME; mkdir -p $HOME
git config --global user.name me; git config --global user.email me@inside.test
git clone -q https://other.test/git/app.git /tmp/app
cd /tmp/app
cat README
head -c 3000000 /dev/urandom > large
git add large; git commit -q -m second; git push -q origin main
git fetch -q; git status -sb | head -1
"""


def test_git_clones_and_pushes_over_https(box: Sandbox, far: Upstreams) -> None:
    far.seen.clear()
    said = run(box, f"bash -c '{GIT}'")
    assert said.splitlines() == ["hello", "## main...origin/main"], said
    expected = base64.b64encode(f"x-access-token:{SECRET}".encode()).decode()
    assert {each[2].get("authorization") for each in far.seen} == {f"Basic {expected}"}
    services = [each[1].rpartition("/")[2] for each in far.seen if each[0] == "POST"]
    assert "git-upload-pack" in services
    assert services.count("git-receive-pack") >= 1
    repository = far.repositories / "app.git"
    shown = subprocess.run(
        ["git", "-c", "safe.directory=*", "-C", str(repository), "log", "--format=%s", "main"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert shown.stdout.split() == ["second", "first"]
    assert SECRET not in run(box, "git -C /tmp/app config --list; cat /tmp/git-home/.git-credentials")


STREAMS = r"""
import base64, os, socket, ssl, sys
from urllib.parse import urlsplit
url, token = urlsplit(sys.argv[1]), os.environ.get("WARDIAN_TOKEN", "mine")
context = ssl._create_unverified_context() if sys.argv[2:] else ssl.create_default_context()

def ask(path, *headers):
    raw = socket.create_connection((url.hostname, 443 if url.scheme == "https" else 80), timeout=30)
    s = context.wrap_socket(raw, server_hostname=url.hostname) if url.scheme == "https" else raw
    head = [f"GET {url.path}{path} HTTP/1.1", f"Host: {url.hostname}", f"Authorization: Bearer {token}"]
    s.sendall("\r\n".join([*head, *headers, "", ""]).encode())
    f = s.makefile("rb")
    status = f.readline().split()[1].decode()
    while f.readline().strip(): pass
    return s, f, status

def event(f):
    while not (line := f.readline()).startswith(b"data: "):
        assert line
    return line.split()[1].decode()

# The second event is only said once somebody who has the first one asks for it.
_, events, _ = ask("/drip")
print(event(events), ask("/drip/on")[2], event(events))

key = base64.b64encode(os.urandom(16)).decode()
upgrade = ["Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13"]
s, f, status = ask("/ws", *upgrade, f"Sec-WebSocket-Key: {key}")
print(status)
for word in (b"first", b"second"):
    mask = os.urandom(4)
    s.sendall(bytes([0x81, 0x80 | len(word)]) + mask + bytes(b ^ mask[i % 4] for i, b in enumerate(word)))
    print(f.read(2 + len(word))[2:].decode())
"""


def test_events_and_websockets_pass_as_they_come(
    box: Sandbox, make: Make, server: Server, far: Upstreams
) -> None:
    """Through the bridge by both ways in, and through the gate where a name, or each request, decides."""
    named = make()
    network = {
        "dnsServers": [far.names],
        "allowOut": ["llm.test"],
        "denyOut": ["0.0.0.0/0"],
        "egressRules": ["allow false.test:80 GET /drip*", "allow false.test:80 GET /ws"],
    }
    call(server, "PUT", f"/sandboxes/{named.sandbox_id}/network", network)
    for where, url, more in (
        (box, "http://bridge.wardian.internal/api", ""),
        (box, "https://api.test", ""),
        (named, "http://llm.test", ""),
        (named, "https://llm.test", "untrusted"),
        (named, "http://false.test", ""),
    ):
        far.seen.clear()
        where.files.write("/tmp/streams.py", STREAMS)
        mine = "" if where is box else "WARDIAN_TOKEN=mine"
        said = run(where, f"{mine} python3 /tmp/streams.py {url} {more}")
        assert said.splitlines() == ["first 200 second", "101", "first", "second"], (url, said)
        secret = SECRET if where is box else "mine"
        assert {each[2]["authorization"] for each in far.seen} == {f"Bearer {secret}"}, url


def test_what_no_grant_allows_is_refused(box: Sandbox, server: Server, far: Upstreams) -> None:
    far.seen.clear()
    for command, expected in (
        (f"{CURL} {TOKEN} $WARDIAN_BRIDGE_URL/nothing/echo", "grant_not_found"),
        (f"{CURL} https://other.test/private", "not_granted"),
        (f"{CURL} -X DELETE https://other.test/echo", "not_granted"),
        (f"{CURL} --path-as-is https://other.test/echo/../private", "not_granted"),
        (f"{CURL} --path-as-is https://other.test/echo/%2e%2e/private", "not_granted"),
        (f"{CURL} -H 'Host: api.test' https://other.test/echo", "host_mismatch"),
        (f"{CURL} $WARDIAN_BRIDGE_URL/api/echo", "token_missing"),
    ):
        assert code(run(box, command)) == expected, command
    assert far.seen == []
    assert [each["reason"] for each in events(server, box)[-2:]] == ["not_granted", "token_missing"]


def test_a_withdrawn_grant_is_gone_at_once_and_a_new_one_is_there(
    box: Sandbox, server: Server, far: Upstreams
) -> None:
    grant = {
        "name": "late",
        "secret": "api-key",
        "host": "late.test",
        "injector": {"kind": "bearer"},
        "sandbox": box.sandbox_id,
    }
    ask = f"{CURL} {TOKEN} $WARDIAN_BRIDGE_URL/late/echo"
    assert code(run(box, ask)) == "grant_not_found"
    call(server, "POST", "/wardian/grants", grant | {"host": "bucket.test", "injector": {"kind": "bearer"}})
    assert json.loads(run(box, ask))["path"] == "/echo"
    call(server, "DELETE", "/wardian/grants/late")
    assert code(run(box, ask)) == "grant_not_found"


def test_the_server_decides_where_the_bridge_may_connect(make: Make, server: Server) -> None:
    """A name that leads inward does not help, however it was granted."""
    box = make()
    grant = {"name": "inside", "secret": "api-key", "host": "inside.test", "injector": {"kind": "bearer"}}
    call(server, "POST", "/wardian/grants", grant)
    try:
        said = run(box, f"{CURL} {TOKEN} $WARDIAN_BRIDGE_URL/inside/x")
        assert code(said) == "upstream_denied"
        assert events(server, box)[-1]["reason"] == "denied_address"
    finally:
        call(server, "DELETE", "/wardian/grants/inside")


def test_the_bridge_is_started_again_when_it_ends(box: Sandbox, server: Server) -> None:
    ask = f"{CURL} --retry 8 --retry-all-errors {TOKEN} https://api.test/echo"
    (pid,) = bridges(server)
    os.kill(pid, signal.SIGKILL)
    assert json.loads(run(box, ask).splitlines()[-1])["path"] == "/echo"
    assert bridges(server) != [pid]


def test_what_a_speculative_fork_does_outside_waits_for_its_promotion(
    make: Make, server: Server, far: Upstreams
) -> None:
    box = make()
    (told,) = wardian(server, "sandbox", "fork", "--speculative", box.sandbox_id)
    branch = Sandbox.connect(told["sandbox"]["sandboxID"], **access(server))
    try:
        pay = f"{CURL} {TOKEN} -d pay=1 https://api.test/pay"
        far.seen.clear()
        for _ in range(2):
            assert code(run(branch, pay)) == "effect_speculative"
        assert json.loads(run(branch, f"{CURL} {TOKEN} https://api.test/echo"))["path"] == "/echo"
        assert json.loads(run(box, pay))["path"] == "/pay"  # the trunk is none
        assert [seen[:2] for seen in far.seen] == [("GET", "/echo"), ("POST", "/pay")]
        (deeper,) = wardian(server, "sandbox", "fork", branch.sandbox_id)
        assert deeper["sandbox"]["speculative"]
        wardian(server, "sandbox", "kill", deeper["sandbox"]["sandboxID"])
        assert wardian(server, "sandbox", "promote", branch.sandbox_id)["held"] == 1
        far.seen.clear()
        assert json.loads(run(branch, pay))["path"] == "/pay"
        assert len(far.requests("/pay")) == 1
        assert wardian(server, "sandbox", "promote", branch.sandbox_id)["held"] == 0
    finally:
        branch.kill()


def test_the_command_line(server: Server, box: Sandbox) -> None:
    made = wardian(
        server, "grant", "add", "cli", "--secret", "api-key", "--preset", "openai", "--path", "/v1/*"
    )
    assert (made["host"], made["injector"]["kind"], made["inDoubt"]) == ("api.openai.com", "bearer", "safe")
    assert "cli" in [each["name"] for each in wardian(server, "grant", "ls")]
    assert wardian(server, "grant", "rm", "cli") == {"name": "cli", "removed": True}
    wardian(server, "budget", "set", "--run", "no-such-run", "--calls", "5")
    assert {"scope": "run", "subject": "no-such-run", "unit": "calls", "most": 5, "used": 0} in wardian(
        server, "budget", "ls"
    )
    wardian(server, "budget", "rm", "calls", "--run", "no-such-run")
    assert isinstance(wardian(server, "effects", "ls"), list)
