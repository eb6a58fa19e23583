"""A server with a domain of its own, for clients that know nothing but its name.

The name does not resolve anywhere: clients reach it through the server's own proxy, and trust its own
authority. So what is shown here needs neither DNS nor a public certificate.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
import ssl
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import httpx
import pytest
import websockets
from e2b import AsyncSandbox, PtySize, Sandbox
from tests.acceptance.conftest import LIFETIME_S, Server, serve, stop
from tests.acceptance.sdks.releases import SDKS, release, run_program
from tests.acceptance.sdks.services import SERVICES

NAME = "wardian.test"
WEB, SOCKET = 8080, 8081
MIB = 1 << 20
PATIENCE_S = 90
"""How long anything may take: nothing here is about speed, and the machine may be busy."""

CURL = ("curl", "--silent", "--show-error", "--write-out", "%{stderr}%{http_version}")


@dataclass(frozen=True)
class Domain:
    """How clients reach the server, and a sandbox with two services in it."""

    server: Server

    @property
    def ca(self) -> str:
        return str(self.server.facts["ca"])

    @property
    def proxy(self) -> str:
        return str(self.server.facts["proxy"])

    @property
    def api(self) -> str:
        return str(self.server.facts["https"])

    @property
    def environment(self) -> dict[str, str]:
        """What a user would export; nothing of it says where the server is, except by the proxy."""
        others = {k: v for k, v in os.environ.items() if not k.startswith(("E2B_", "AGENTSPHERE_"))}
        return others | {
            "E2B_DOMAIN": str(self.server.facts["domain"]),
            "E2B_API_KEY": self.server.key,
            "SSL_CERT_FILE": self.ca,
            "HTTPS_PROXY": self.proxy,
        }

    @property
    def trust(self) -> ssl.SSLContext:
        """A new one each time: httpx writes into it which versions of HTTP it speaks."""
        return ssl.create_default_context(cafile=self.ca)

    def create(self, **options: Any) -> Sandbox:
        """The proxy is said to the SDK: what it connects through is kept for the whole process, and a
        connection that an earlier test made knows nothing of this test's environment."""
        return Sandbox.create(proxy=self.proxy, **options)

    @cached_property
    def sandbox(self) -> Sandbox:
        sandbox = self.create(timeout=LIFETIME_S)
        sandbox.files.write("services.py", SERVICES)
        services = sandbox.commands.run(f"python3 services.py {WEB} {SOCKET}", background=True, timeout=0)
        assert next(iter(services))[0] == "ready\n"
        services.disconnect()
        return sandbox

    def url(self, path: str = "/", port: int = WEB) -> str:
        return f"https://{self.sandbox.get_host(port)}{path}"

    def client(self, **options: object) -> httpx.Client:
        return httpx.Client(verify=self.trust, proxy=self.proxy, timeout=PATIENCE_S, **options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def domain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Domain]:
    data = tmp_path_factory.mktemp("domain")
    server = serve(data, "--domain", NAME, "--tls-port", "0", "--proxy-port", "0")
    found = Domain(server)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("E2B_API_URL", "E2B_SANDBOX_URL"):
            patch.delenv(name, raising=False)
        for name in ("E2B_DOMAIN", "E2B_API_KEY", "SSL_CERT_FILE", "HTTPS_PROXY"):
            patch.setenv(name, found.environment[name])
        try:
            yield found
        finally:
            if "sandbox" in vars(found):
                found.sandbox.kill()
            stop(server)


# -- the SDKs


@pytest.mark.parametrize("http_version", ["1.1", "2"])
def test_the_newest_python_sdk(domain: Domain, http_version: str) -> None:
    env = domain.environment | {"E2B_HTTP_VERSION": http_version}
    done = run_program(sys.executable, str(SDKS / "tour.py"), "e2b", env=env)
    assert set(json.loads(done.splitlines()[-1]).values()) == {"ok"}


def test_an_older_python_sdk(domain: Domain) -> None:
    python = release("e2b", "2.45.1").installed() / "bin/python"
    done = run_program(str(python), str(SDKS / "tour.py"), "e2b", env=domain.environment)
    assert set(json.loads(done.splitlines()[-1]).values()) == {"ok"}


def test_the_javascript_sdk(domain: Domain) -> None:
    directory = release("e2b", "2.51.0", "javascript").installed()
    shutil.copy(SDKS / "tour.mjs", directory)
    env = domain.environment | {"NODE_EXTRA_CA_CERTS": domain.ca, "SDK_PROXY": domain.proxy}
    done = run_program("node", str(directory / "tour.mjs"), env=env)
    assert set(json.loads(done.splitlines()[-1]).values()) == {"ok"}


async def test_the_async_sdk_watches_and_types(domain: Domain) -> None:
    """Streams that end when the client wants: a watch and a terminal, both at once on one connection."""
    sandbox = await AsyncSandbox.connect(domain.sandbox.sandbox_id, timeout=LIFETIME_S, proxy=domain.proxy)
    await sandbox.files.make_dir("watched")
    seen: asyncio.Queue[str] = asyncio.Queue()
    heard = bytearray()
    watch = await sandbox.files.watch_dir("watched", on_event=lambda event: seen.put_nowait(event.name))
    terminal = await sandbox.pty.create(size=PtySize(rows=24, cols=80), on_data=heard.extend)
    await sandbox.pty.send_stdin(terminal.pid, b"echo $((6 * 7)) > watched/answer; exit\n")
    async with asyncio.timeout(PATIENCE_S):
        assert await seen.get() == "answer"
        assert (await terminal.wait()).exit_code == 0
    assert await sandbox.files.read("watched/answer") == "42\n"
    await watch.stop()  # type: ignore[no-untyped-call]


VOLUME_PY = """
from e2b import Volume
volume = Volume.create("by-name")
volume.write_file("/notes.txt", "hello")
print(Volume.connect(volume.volume_id).read_file("/notes.txt"), [each.path for each in volume.list("/")])
Volume.destroy(volume.volume_id)
"""
VOLUME_JS = """
const { Volume } = require('e2b')
const proxy = process.env.HTTPS_PROXY
const use = async () => {
  const volume = await Volume.create('by-name', { proxy })
  await volume.writeFile('/notes.txt', 'hello', { proxy })
  const paths = (await volume.list('/', { proxy })).map((each) => `'${each.path}'`)
  console.log(await volume.readFile('/notes.txt', { proxy }), `[${paths}]`)
  await Volume.destroy(volume.volumeId, { proxy })
}
use().catch((error) => { console.error(error); process.exit(1) })
"""


@pytest.mark.parametrize(
    ("client", "http_version"), [("newest", "1.1"), ("newest", "2"), ("older", "2"), ("javascript", "2")]
)
def test_contents_of_volumes_are_where_the_sdks_look(domain: Domain, client: str, http_version: str) -> None:
    """At ``https://api.{domain}/volumecontent``, with nothing said but the domain."""
    env = domain.environment | {"E2B_HTTP_VERSION": http_version, "NODE_EXTRA_CA_CERTS": domain.ca}
    python = sys.executable
    if client == "older":
        python = str(release("e2b", "2.45.1").installed() / "bin/python")
    command = (python, "-c", VOLUME_PY)
    if client == "javascript":
        env["NODE_PATH"] = str(release("e2b", "2.51.0", "javascript").installed() / "node_modules")
        command = ("node", "-e", VOLUME_JS)
    assert run_program(*command, env=env) == "hello ['/notes.txt']\n"


# -- a sandbox's ports


@pytest.mark.parametrize("http2", [False, True])
def test_a_page_is_where_get_host_says(domain: Domain, http2: bool) -> None:
    with domain.client(http2=http2) as client:
        answer = client.get(domain.url("/headers"), headers={"cookie": "a=1"})
    assert answer.http_version == ("HTTP/2" if http2 else "HTTP/1.1")
    seen = answer.json()
    assert seen["host"] == domain.sandbox.get_host(WEB)
    assert (seen["x-forwarded-proto"], seen["cookie"]) == ("https", "a=1")


@pytest.mark.parametrize("http2", [False, True])
@pytest.mark.parametrize("sized", [False, True])
def test_large_bodies_stream_both_ways(domain: Domain, http2: bool, sized: bool) -> None:
    piece, pieces = os.urandom(MIB), 24
    headers = {"content-length": str(pieces * MIB)} if sized else {}
    with domain.client(http2=http2) as client:
        answer = client.post(domain.url("/digest"), content=(piece for _ in range(pieces)), headers=headers)
        assert answer.json() == {"size": pieces * MIB, "sha256": hashlib.sha256(piece * pieces).hexdigest()}
        digest, size = hashlib.sha256(), 0
        with client.stream("GET", domain.url(f"/bytes/{pieces * MIB}")) as download:
            for chunk in download.iter_bytes():
                digest.update(chunk)
                size += len(chunk)
    assert (size, digest.hexdigest()) == (pieces * MIB, hashlib.sha256(b"\0" * size).hexdigest())


@pytest.mark.parametrize("http2", [False, True])
def test_events_come_one_by_one(domain: Domain, http2: bool) -> None:
    """The service sends an event only after the client has asked for it with another request."""
    with (
        domain.client(http2=http2) as client,
        client.stream("GET", domain.url(f"/events/{http2}")) as stream,
    ):
        lines = stream.iter_lines()
        for n in range(3):
            client.post(domain.url(f"/events/{http2}"), content=str(n))
            assert next(line for line in lines if line) == f"data: {n}"


def test_an_answer_that_is_not_read_holds_up_no_other(domain: Domain) -> None:
    """On one HTTP/2 connection: a download whose window is full, and calls beside it."""
    with (
        domain.client(http2=True) as client,
        client.stream("GET", domain.url(f"/bytes/{64 * MIB}")) as unread,
    ):
        assert unread.status_code == 200
        for _ in range(5):
            assert client.get(domain.url("/headers")).status_code == 200


async def test_a_websocket_over_tls(domain: Domain) -> None:
    url = domain.url("/", SOCKET).replace("https:", "wss:")
    async with websockets.connect(
        url, ssl=domain.trust, proxy=domain.proxy, open_timeout=PATIENCE_S
    ) as socket:
        for message in ("hello", b"\0" * MIB):
            await socket.send(message)
            assert await socket.recv() == message


def test_a_private_port_takes_its_token_over_tls(domain: Domain) -> None:
    with (
        domain.create(timeout=LIFETIME_S, network={"allow_public_traffic": False}) as private,
        domain.client(http2=True) as client,
    ):
        url = f"https://{private.get_host(WEB)}/"
        assert client.get(url).status_code == 403
        token = {"e2b-traffic-access-token": private.traffic_access_token or ""}
        assert client.get(url, headers=token).json()["message"].endswith("port is not open")


def test_people_see_what_happened(domain: Domain) -> None:
    """A browser gets a page with the same status as a program gets JSON."""
    browser = {"user-agent": "Mozilla/5.0 Firefox/140.0", "accept": "text/html,*/*;q=0.8"}
    sandbox = domain.create(timeout=LIFETIME_S)
    url = f"https://{sandbox.get_host(4444)}/"

    def look() -> tuple[int, str]:
        with domain.client(http2=True) as client:
            page, told = client.get(url, headers=browser), client.get(url)
        assert page.status_code == told.status_code == told.json()["code"]
        assert page.headers["content-type"] == "text/html; charset=utf-8"
        assert sandbox.sandbox_id in page.text
        return page.status_code, page.text.partition("<title>")[2].partition("<")[0]

    try:
        assert look() == (502, "Closed Port Error")
        sandbox.pause()
        assert look() == (502, "Sandbox Paused")
    finally:
        sandbox.kill()
    assert look() == (502, "Sandbox Not Found")


# -- other clients


@pytest.mark.parametrize("version", ["--http1.1", "--http2"])
def test_curl(domain: Domain, version: str) -> None:
    done = subprocess.run(
        [
            *CURL,
            version,
            "--cacert",
            domain.ca,
            "--proxy",
            domain.proxy,
            "--output",
            "/dev/null",
            domain.url(),
        ],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=True,
    )
    assert done.stderr == version.removeprefix("--http")


def test_curl_without_the_proxy(domain: Domain) -> None:
    """As with DNS: straight to the HTTPS port."""
    port = domain.server.facts["tls_port"]
    host = domain.sandbox.get_host(WEB)
    name = host.partition(":")[0]
    done = subprocess.run(
        [*CURL, "--cacert", domain.ca, "--resolve", f"{name}:{port}:127.0.0.1", f"https://{host}/headers"],
        capture_output=True,
        timeout=PATIENCE_S,
        check=True,
    )
    assert json.loads(done.stdout)["host"] == host


def test_node(domain: Domain) -> None:
    """Node's own ``fetch`` asks no proxy before version 24: a look-up of names stands in for DNS here."""
    script = """
      const dns = require('node:dns')
      const all = (options) => options && options.all
      dns.lookup = (name, options, done) => all(options) ? done(null, [{ address: '127.0.0.1', family: 4 }])
                                                         : done(null, '127.0.0.1', 4)
      fetch(process.argv[1]).then(async (answer) => console.log(answer.status, (await answer.json()).host))
    """
    env = domain.environment | {"NODE_EXTRA_CA_CERTS": domain.ca}
    done = run_program("node", "-e", script, domain.url("/headers"), env=env)
    assert done.split() == ["200", domain.sandbox.get_host(WEB)]


def test_the_authority_is_printed(domain: Domain, tmp_path: Path) -> None:
    wardian = Path(sys.executable).with_name("wardian")
    printed = run_program(str(wardian), "ca", "--data", str(domain.server.data), env=domain.environment)
    assert printed == Path(domain.ca).read_text()
    bundle = tmp_path / "bundle.pem"
    bundle.write_text(
        run_program(str(wardian), "ca", "--bundle", "--data", str(domain.server.data), env=domain.environment)
    )
    assert len(ssl.create_default_context(cafile=str(bundle)).get_ca_certs()) > 10
    with httpx.Client(verify=ssl.create_default_context(cafile=str(bundle)), proxy=domain.proxy) as client:
        assert client.get(f"{domain.api}/health").status_code == 200
