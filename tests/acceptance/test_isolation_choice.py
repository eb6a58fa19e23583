"""The user chooses the isolation: by the unmodified SDK, our API, the command line, a key and a template.

The server has two real drivers: gVisor, and gVisor again under another name that says it is a KVM microVM.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from e2b import Sandbox, SandboxException, Template
from tests.acceptance import commanding
from tests.acceptance.conftest import Server, serve, stop

WARDIAN = (sys.executable, "-m", "tests.acceptance.two_drivers")
HEADER = "X-Wardian-Isolation"
STARTED = "echo $$ > /tmp/started; exec sleep infinity"


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with two drivers."""
    server = serve(tmp_path_factory.mktemp("both"), wardian=WARDIAN)
    yield server
    for item in ask(server, "GET", "/v2/sandboxes").json():
        ask(server, "DELETE", f"/sandboxes/{item['sandboxID']}")
    stop(server)


def ask(server: Server, method: str, path: str, body: Any = None, **headers: str) -> httpx.Response:
    headers = {"X-API-KEY": server.key} | headers
    return httpx.request(method, server.url + path, json=body, headers=headers, timeout=90)


def options(server: Server, key: str | None = None, **headers: str) -> dict[str, Any]:
    """How the SDK is told of this server."""
    return {
        "api_key": key or server.key,
        "api_url": server.url,
        "sandbox_url": server.url,
        "headers": headers,
    }


def told(server: Server, sandbox: Sandbox) -> str:
    isolation: str = ask(server, "GET", f"/sandboxes/{sandbox.sandbox_id}").json()["isolation"]
    return isolation


def wardian(server: Server, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """The command line, with this server's address."""
    places = ["--url", server.url, "--api-key", server.key] if words[0] != "key" else []
    done = commanding.wardian(words[0], *places, *words[1:])
    assert not check or done.returncode == 0, done.stderr
    return done


def test_the_sdk_chooses_with_a_header(both: Server) -> None:
    """Unmodified: ``headers`` is the SDK's own option, and goes with every later request of that sandbox."""
    for asked, level in (("gvisor", "gvisor"), ("microvm", "microvm-kvm"), ("auto", "microvm-kvm")):
        sandbox = Sandbox.create(timeout=120, **options(both, **{HEADER: asked}))
        assert told(both, sandbox) == level
        assert sandbox.commands.run("echo alive").stdout == "alive\n"
        sandbox.pause()
        sandbox.connect(timeout=60)
        assert sandbox.commands.run("echo again").stdout == "again\n"
        assert told(both, sandbox) == level
        sandbox.kill()


def test_what_is_not_said_is_the_strongest_at_native_speed(both: Server) -> None:
    sandbox = Sandbox.create(timeout=60, **options(both))
    assert told(both, sandbox) == "microvm-kvm"
    sandbox.kill()


def test_what_cannot_be_had_is_refused_with_what_why_and_what_next(both: Server) -> None:
    answer = ask(both, "POST", "/v2/sandboxes", {"templateID": "base", "isolation": "microvm-emulated"})
    refused = answer.json()
    assert (answer.status_code, refused["error_code"]) == (501, "isolation_unavailable")
    for words in ("'microvm-emulated'", "gvisor: works, as gvisor", "second: works", "ask for microvm-kvm"):
        assert words in refused["message"]
    with pytest.raises(SandboxException, match="isolation is one of"):
        Sandbox.create(timeout=60, **options(both, **{HEADER: "docker"}))


def test_our_api_and_every_event_say_the_level(both: Server) -> None:
    body = {"templateID": "base", "isolation": "gvisor", "timeout": 60}
    made = ask(both, "POST", "/v2/sandboxes", body).json()
    assert made["isolation"] == "gvisor"
    listed = ask(both, "GET", "/v2/sandboxes").json()
    assert [item["isolation"] for item in listed if item["sandboxID"] == made["sandboxID"]] == ["gvisor"]
    forked = ask(both, "POST", f"/sandboxes/{made['sandboxID']}/fork", {"count": 1}).json()
    assert forked[0]["sandbox"]["isolation"] == "gvisor"
    kept = ask(both, "POST", f"/sandboxes/{made['sandboxID']}/snapshots", {"name": "kept"}).json()
    assert kept["isolation"] == "gvisor"
    events = (both.data / "events" / f"{made['sandboxID']}.jsonl").read_text().splitlines()
    assert len(events) > 3
    assert {json.loads(event)["isolation"] for event in events} == {"gvisor"}


def test_the_command_line_chooses(both: Server) -> None:
    made = json.loads(wardian(both, "sandbox", "create", "--isolation", "gvisor", "--json").stdout)
    assert made["isolation"] == "gvisor"
    made = json.loads(wardian(both, "sandbox", "create", "--isolation", "microvm", "--json").stdout)
    assert made["isolation"] == "microvm-kvm"
    bad = wardian(both, "sandbox", "create", "--isolation", "docker", check=False)
    assert bad.returncode == 2
    assert "isolation is one of" in bad.stderr


def test_a_key_demands_a_minimum(both: Server) -> None:
    data = ("--data", str(both.data), "--json")
    made = json.loads(wardian(both, "key", "create", "--minimum-isolation", "microvm", *data).stdout)
    assert made["minimum_isolation"] == "microvm-kvm"
    sandbox = Sandbox.create(timeout=60, **options(both, made["key"]))
    assert told(both, sandbox) == "microvm-kvm"
    assert sandbox.commands.run("echo strong").stdout == "strong\n"
    with pytest.raises(SandboxException, match="weaker than this key's minimum, 'microvm-kvm'"):
        Sandbox.create(timeout=60, **options(both, made["key"], **{HEADER: "gvisor"}))
    weak = Sandbox.create(timeout=60, **options(both, **{HEADER: "gvisor"}))
    with pytest.raises(SandboxException, match="weaker"):
        Sandbox.connect(weak.sandbox_id, **options(both, made["key"]))
    weak.kill()
    sandbox.kill()
    known = json.loads(wardian(both, "key", "ls", *data).stdout)
    assert {key["minimum_isolation"] for key in known} == {None, "microvm-kvm"}
    bad = wardian(both, "key", "create", "--minimum-isolation", "auto", *data[:2], check=False)
    assert (bad.returncode, "is no minimum" in bad.stderr) == (2, True)


def test_a_template_chooses_and_is_warm_for_either(both: Server, tmp_path: Path) -> None:
    """Built in one isolation; in the other, what it starts is started and captured at the first use."""
    (tmp_path / "wardian.toml").write_text(
        f"""
        [template]
        name = "started"
        isolation = "gvisor"
        [start]
        command = "{STARTED}"
        ready = "test -s /tmp/started"
        """
    )
    built = json.loads(wardian(both, "template", "build", str(tmp_path), "--json").stdout)
    assert (built["isolation"], built["warm"]) == ("gvisor", True)
    assert ask(both, "GET", "/templates/started").json()["isolation"] == "gvisor"
    pids: dict[str, list[str]] = {}
    for asked, level in ((None, "gvisor"), ("microvm", "microvm-kvm"), ("microvm", "microvm-kvm")):
        headers = {} if asked is None else {HEADER: asked}
        sandbox = Sandbox.create("started", timeout=60, **options(both, **headers))
        assert told(both, sandbox) == level
        pids.setdefault(level, []).append(sandbox.commands.run("cat /tmp/started").stdout)
        assert sandbox.commands.run("pgrep -f 'sleep infinity'").stdout
        sandbox.kill()
    first, second = pids["microvm-kvm"]
    assert first == second  # of one capture


def test_the_command_line_says_what_a_template_is_built_in(both: Server, tmp_path: Path) -> None:
    (tmp_path / "wardian.toml").write_text('[template]\nname = "said"\n[[step]]\nrun = "true"\n')
    words = ("template", "build", str(tmp_path), "--isolation", "microvm", "--json")
    assert json.loads(wardian(both, *words).stdout)["isolation"] == "microvm"
    sandbox = Sandbox.create("said", timeout=60, **options(both))
    assert told(both, sandbox) == "microvm-kvm"
    sandbox.kill()


def test_a_template_hands_its_isolation_on(both: Server, tmp_path: Path) -> None:
    """To those that are built upon it and say nothing themselves; what they say may not be weaker."""

    def build(name: str, text: str, *words: str) -> subprocess.CompletedProcess[str]:
        (tmp_path / name).mkdir()
        (tmp_path / name / "wardian.toml").write_text(f'[template]\nname = "{name}"\n{text}')
        return wardian(both, "template", "build", str(tmp_path / name), "--json", *words, check=False)

    fixed, upon = (
        'isolation = "gvisor"\n[base]\ntemplate = "base"',
        '[base]\ntemplate = "fixed"\n[[step]]\nrun = "true"',
    )
    assert build("fixed", fixed).returncode == 0
    assert json.loads(build("heir", upon).stdout)["isolation"] == "gvisor"
    sandbox = Sandbox.create("heir", timeout=60, **options(both))
    assert told(both, sandbox) == "gvisor"
    sandbox.kill()
    assert (
        json.loads(build("stronger", upon, "--isolation", "microvm-kvm").stdout)["isolation"] == "microvm-kvm"
    )
    weaker = build("weaker", upon, "--isolation", "microvm")  # which may be emulated
    assert (weaker.returncode != 0, "isolation_below_base" in weaker.stderr) == (True, True), weaker.stderr

    def build_of(name: str, *lines: str, isolation: str = "") -> subprocess.CompletedProcess[str]:
        (tmp_path / name).mkdir()
        (tmp_path / name / "Dockerfile").write_text("\n".join(lines))
        words = ["--name", name, *(["--isolation", isolation] if isolation else [])]
        place = str(tmp_path / name)
        return wardian(both, "template", "build", place, "--json", *words, check=False)

    below = "FROM wardian/fixed AS one", "RUN touch /made", "FROM one AS two", "RUN true"
    copying = *below, "FROM base", "COPY --from=two /made /made"
    for name, lines in (("standing", (*below, "FROM two")), ("copying", copying)):
        done = build_of(name, *lines)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["isolation"] == "gvisor"
        assert ask(both, "GET", f"/templates/{name}").json()["isolation"] == "gvisor"
    weaker = build_of("copying-weaker", *copying, isolation="microvm")
    assert (weaker.returncode != 0, "isolation_below_base" in weaker.stderr) == (True, True), weaker.stderr


def test_the_sdk_says_what_a_template_is_built_in(both: Server) -> None:
    made = Template().from_template("base").run_cmd("true")
    there = options(both, **{HEADER: "gvisor"})
    del there["sandbox_url"]
    Template.build(made, "by-sdk", **there)
    assert ask(both, "GET", "/templates/by-sdk").json()["isolation"] == "gvisor"
    sandbox = Sandbox.create("by-sdk", timeout=60, **options(both))
    assert told(both, sandbox) == "gvisor"
    sandbox.kill()


def test_the_doctor_shows_every_driver() -> None:
    done = subprocess.run([*WARDIAN, "doctor", "--json"], capture_output=True, text=True, timeout=60)
    found = {finding["name"]: finding for finding in json.loads(done.stdout)["findings"]}
    assert "isolation gvisor" in found["driver gvisor"]["detail"]
    assert "isolation microvm-kvm" in found["driver second"]["detail"]
