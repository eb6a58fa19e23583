"""Builds of a tenant that means harm: others' templates, the host's files and neighbours, what was lent."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.acceptance.conftest import Server, serve, stop
from tests.acceptance.templates import Api, is_over, key_of, messages, wardian
from tests.images.busybox import busybox_layers
from tests.images.oci_images import image, write_layout
from tests.security.test_uploads_hostile import member, packed

pytestmark = pytest.mark.timeout(300)

TENANT = "stranger"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    started = serve(tmp_path_factory.mktemp("builds"))
    try:
        yield started
    finally:
        stop(started)


@pytest.fixture(scope="module")
def key(server: Server) -> str:
    return key_of(server, TENANT)


@pytest.fixture
def stranger(server: Server, key: str) -> Iterator[Api]:
    with Api(server, key) as api:
        yield api


@pytest.fixture
def operator(server: Server) -> Iterator[Api]:
    with Api(server) as api:
        yield api


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image on the host's disk."""
    made = image(busybox_layers(), {"User": "1234:5678", "WorkingDir": "/opt"})
    return write_layout(tmp_path_factory.mktemp("layout") / "image", made)


def outcome(api: Api, address: str) -> dict[str, Any]:
    return api.until(address, is_over)


def test_another_tenants_templates_are_like_ones_that_do_not_exist(operator: Api, stranger: Api) -> None:
    """By id, alias and namespace: to read, build, upload to, tag, cancel, delete, compare, and build upon."""
    address = operator.start("mine", {"type": "RUN", "args": ["echo secret-words"]})
    assert outcome(operator, address)["status"] == "ready"
    template, build = address.split("/")[2], address.split("/")[4]
    waiting = operator.request("mine").rpartition("/")[2]
    empty: dict[str, Any] = {"fromTemplate": "base", "steps": []}
    own_plan = {"plan": {"stages": [{"name": "s", "base": {"kind": "template", "reference": "base"}}]}}
    for name in (template, "mine", "default%2Fmine"):
        for method, path, body in (
            ("GET", f"/templates/{name}", None),
            ("GET", f"/templates/aliases/{name}", None),
            ("PATCH", f"/v2/templates/{name}", {"public": True}),
            ("DELETE", f"/templates/{name}", None),
            ("GET", f"/templates/{name}/tags", None),
            ("GET", f"/templates/{name}/tags/groups", None),
            ("GET", f"/templates/{name}/tags/default/assignments", None),
            ("GET", f"/templates/{name}/files/{'0' * 64}", None),
            ("GET", f"/templates/{name}/builds/{build}/status", None),
            ("GET", f"/templates/{name}/builds/{build}/logs", None),
            ("POST", f"/v2/templates/{name}/builds/{waiting}", empty),
            ("POST", f"/wardian/templates/{name}/builds/{waiting}", own_plan),
            ("DELETE", f"/wardian/templates/{name}/builds/{waiting}", None),
            ("GET", f"/wardian/builds/{name}", None),
            ("GET", f"/wardian/differences?old=base&new={name}", None),
            ("POST", "/templates/tags", {"target": name.replace("%2F", "/"), "tags": ["x"]}),
            ("DELETE", "/templates/tags", {"name": name.replace("%2F", "/"), "tags": ["x"]}),
            ("POST", "/v2/sandboxes", {"templateID": name.replace("%2F", "/")}),
        ):
            answer = stranger.call(method, path, body)
            assert answer.status_code == 404, (method, path, answer.text)
            assert "secret-words" not in answer.text
    for reference in (build, waiting):
        assert stranger.call("GET", f"/wardian/builds/{reference}").status_code == 404
        assert stranger.call("POST", "/v2/sandboxes", {"templateID": reference}).status_code == 404
    for reference in (template, "default/mine", build):
        failed = outcome(stranger, stranger.start("upon", fromTemplate=reference))
        assert failed["status"] == "error"
        assert "there is no template" in failed["reason"]["message"]
    assert operator.get(f"/templates/mine/builds/{waiting}/status")["status"] == "waiting"
    operator.call("DELETE", "/templates/mine")


def test_a_build_of_ones_own_template_takes_no_other_templates_build(operator: Api, stranger: Api) -> None:
    theirs = operator.request("theirs").rpartition("/")[2]
    ours = stranger.request("ours").split("/")[2]
    for method, path in (("GET", "status"), ("GET", "logs")):
        assert stranger.call(method, f"/templates/{ours}/builds/{theirs}/{path}").status_code == 404
    started = stranger.call("POST", f"/v2/templates/{ours}/builds/{theirs}", {"fromTemplate": "base"})
    assert started.status_code == 404
    operator.call("DELETE", "/templates/theirs")
    stranger.call("DELETE", "/templates/ours")


def test_files_are_those_uploaded_for_the_very_template(operator: Api, stranger: Api) -> None:
    """A hash that another template has files under brings nothing."""
    digest = "1" * 64
    template = operator.request("files").split("/")[2]
    url = operator.get(f"/templates/{template}/files/{digest}")["url"]
    assert httpx.put(url, content=packed(member("secret"), content=b"x")).status_code == 200
    assert operator.get(f"/templates/{template}/files/{digest}")["present"] is True
    address = stranger.request("their-files")
    assert stranger.get(f"/templates/{address.split('/')[2]}/files/{digest}")["present"] is False
    step = {"type": "COPY", "args": ["secret", "/x"], "filesHash": digest}
    refused = stranger.call("POST", f"/v2{address}", {"fromTemplate": "base", "steps": [step]})
    assert (refused.status_code, "were not uploaded" in refused.json()["message"]) == (400, True)
    for bad in ("../" * 3, "A" * 64, "1" * 63):
        assert stranger.call("GET", f"/templates/their-files/files/{bad}").status_code in (400, 404)
    operator.call("DELETE", "/templates/files")
    stranger.call("DELETE", "/templates/their-files")


def test_only_the_operator_builds_from_image_files_of_the_host(
    server: Server, key: str, layout: Path, tmp_path: Path, operator: Api
) -> None:
    (tmp_path / "Dockerfile").write_text(
        f"FROM oci:{layout}:latest\nRUN id -u > /tmp/ids; id -g >> /tmp/ids; pwd >> /tmp/ids; cat /tmp/ids\n"
    )
    refused = wardian(server, "build", str(tmp_path), "--name", "host", key=key)
    assert refused.returncode == 5
    assert "only this server's operator may build from files of its host" in refused.stderr
    built = wardian(server, "build", str(tmp_path), "--name", "host")
    assert built.returncode == 0, built.stderr
    said = [line.partition("] ")[2] for line in built.stderr.splitlines()]
    assert [line for line in said if line in ("1234", "5678", "/opt")] == ["1234", "5678", "/opt"]
    operator.call("DELETE", "/templates/host")


@pytest.mark.parametrize(
    "reference",
    [
        "oci:{0}:latest",
        "docker://oci:{0}",
        "oci-archive:{0}",
        "docker-archive:/etc/passwd",
        "dir:{0}",
        "/etc",
        "../x",
    ],
)
def test_no_spelling_makes_an_image_of_a_hosts_file(stranger: Api, layout: Path, reference: str) -> None:
    """Neither in a plan of ours, nor in a build of E2B's."""
    named = reference.format(layout)
    address = stranger.request("spelling")
    plan = {"stages": [{"name": "s", "base": {"kind": "image", "reference": named}}]}
    answer = stranger.call("POST", f"/wardian{address}", {"plan": plan})
    if answer.status_code == 202:
        told = outcome(stranger, address)
        assert told["status"] == "error"
        assert "cannot be had" in told["reason"]["message"]
    else:
        assert answer.status_code in (400, 403), answer.text
    address = stranger.request("spelling")
    answer = stranger.call("POST", f"/v2{address}", {"fromImage": named})
    if answer.status_code == 202:
        assert outcome(stranger, address)["status"] == "error"
    else:
        assert answer.status_code == 400, answer.text
    stranger.call("DELETE", "/templates/spelling")


@pytest.mark.parametrize("registry", ["127.0.0.1:{port}", "localhost:{port}", "10.0.0.1", "[::1]:{port}"])
def test_no_build_calls_the_servers_neighbours(server: Server, stranger: Api, registry: str) -> None:
    """The server itself among them."""
    image_name = registry.format(port=server.url.rpartition(":")[2]) + "/a/b"
    address = stranger.request("neighbour")
    answer = stranger.call("POST", f"/v2{address}", {"fromImage": image_name})
    if answer.status_code == 202:
        told = outcome(stranger, address)
        assert told["status"] == "error"
        assert "not on the public internet" in told["reason"]["message"]
    else:
        assert answer.status_code == 400
    stranger.call("DELETE", "/templates/neighbour")


@pytest.mark.slow
def test_what_a_step_was_lent_is_gone_after_it(
    server: Server, key: str, tmp_path: Path, stranger: Api
) -> None:
    """For a process that it left behind, for later stages, for the start command, and for sandboxes."""
    (tmp_path / "Dockerfile").write_text(
        "FROM base AS one\n"
        "RUN ls /run/wardian-build > /there\n"
        "RUN (setsid sh -c 'sleep 30; cp -r /run/wardian-build /stolen' &)\n"
        "RUN test -s /there && ! pgrep -x sleep && cp -r /run/wardian-build /run/elsewhere\n"
        "FROM base\n"
        "COPY --from=one / /one\n"
        "CMD ls /run > /tmp/run; env > /tmp/env; "
        "find / -xdev -name '*wardian-build*' > /tmp/found; sleep 1000\n"
        "HEALTHCHECK CMD test -e /tmp/found\n"
    )
    built = wardian(server, "build", str(tmp_path), "--name", "thief", key=key)
    assert built.returncode == 0, built.stderr
    made = stranger.call("POST", "/sandboxes", {"templateID": "thief", "timeout": 60, "secure": False}).json()
    read = f"{server.url}/files"
    headers = {"E2b-Sandbox-Id": made["sandboxID"], "E2b-Sandbox-Port": "49983"}
    found = {
        path: httpx.get(read, params={"path": path}, headers=headers).text
        for path in ("/tmp/run", "/tmp/env", "/tmp/found", "/one/there")
    }
    assert "apt.conf" in found["/one/there"]
    assert "wardian-build" not in found["/tmp/run"] + found["/tmp/env"] + found["/tmp/found"]
    assert "APT_CONFIG" not in found["/tmp/env"]
    stranger.call("DELETE", f"/sandboxes/{made['sandboxID']}")
    (tmp_path / "Dockerfile").write_text(
        "FROM base AS one\nRUN true\nFROM base\nCOPY --from=one /run/wardian-build /x\n"
    )
    failed = wardian(server, "build", str(tmp_path), "--name", "thief", key=key)
    assert (failed.returncode, "there is no '/run/wardian-build'" in failed.stderr) == (1, True)
    stranger.call("DELETE", "/templates/thief")


def test_what_a_step_prints_cannot_control_a_terminal(stranger: Api) -> None:
    address = stranger.start(
        "prints", {"type": "RUN", "args": [r"printf 'a\033[2Jb\007\r\nover\rdone\n\0\377z\n'"]}
    )
    assert {"a[2Jb", "done"} <= set(messages(outcome(stranger, address)))
    for message in messages(outcome(stranger, address)):
        assert message.isprintable(), message
    stranger.call("DELETE", "/templates/prints")
