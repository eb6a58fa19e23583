"""Canaries planted in a real sandbox are found in its snapshot, wherever they were put; a clean one has none.

No canary is ever sent in the clear: what plants it gets it masked, so that each is where it was planted.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from e2b import Sandbox
from e2b.exceptions import SandboxException
from tests.acceptance.conftest import Server, serve, stop
from tests.acceptance.templates import build, wardian
from typer.testing import CliRunner

from wardian.bridge.searching import PAGES
from wardian.cli.main import app
from wardian.isolation.gvisor.image import FILES
from wardian.sandboxes.inspecting import Places
from wardian.snapshots.needles import Needle
from wardian.snapshots.scan import FileSource, Report, scan

MASK = 0x5A
PLANTED = ("heap", "environment", "file", "deleted", "gzip", "zlib", "base64", "url", "hex", "json")
PLANT = f"""
import base64, gzip, json, os, subprocess, sys, tempfile, urllib.parse, zlib
value = {{name: bytes(byte ^ {MASK} for byte in bytes.fromhex(text))
         for name, text in (word.split("=") for word in sys.argv[1:])}}
kept = [value["heap"],
        zlib.compress(b"some words before " + value["zlib"]),
        base64.b64encode(b"user:" + value["base64"]),
        urllib.parse.quote(value["url"], safe="").encode(),
        value["hex"].hex().encode(),
        json.dumps({{"token": value["json"].decode()}}).encode()]
child = subprocess.Popen(["sleep", "1000"], env={{b"TOKEN": value["environment"]}})
open("/home/user/file", "wb").write(b"token=" + value["file"])
open("/home/user/file.gz", "wb").write(gzip.compress(b"some words before " + value["gzip"]))
deleted = open("/home/user/deleted", "wb+")
deleted.write(value["deleted"])
deleted.flush()
os.unlink("/home/user/deleted")
print("planted", flush=True)
sys.stdin.read()
child.wait()
"""


def canaries() -> dict[str, str]:
    return {name: f"wk/{name}+" + secrets.token_urlsafe(24) for name in PLANTED}


def needles(values: dict[str, str]) -> list[Needle]:
    return [Needle(name, value.encode()) for name, value in values.items()]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    started = serve(tmp_path_factory.mktemp("canaries"))
    yield started
    stop(started)


def access(server: Server) -> dict[str, Any]:
    return {"api_url": server.url, "sandbox_url": server.url, "api_key": server.key}


@pytest.fixture
def box(server: Server) -> Iterator[Sandbox]:
    made = Sandbox.create(timeout=120, **access(server))
    yield made
    made.kill()


def plant(box: Sandbox, values: dict[str, str]) -> None:
    masked = " ".join(
        f"{name}={bytes(byte ^ MASK for byte in value.encode()).hex()}" for name, value in values.items()
    )
    box.files.write("/tmp/plant.py", PLANT)
    planting = box.commands.run(f"exec python3 /tmp/plant.py {masked}", background=True, timeout=0)
    assert "planted" in str(next(iter(planting))[0])


def search(server: Server, snapshot_id: str, wanted: Sequence[Needle]) -> Report:
    directory = server.data / "snapshots" / snapshot_id.partition(":")[0]
    paths = [path for path in sorted(directory.iterdir()) if path.name != "manifest.json"]
    sources = [FileSource(path, paged=path.name == PAGES, locate=Places(path).at) for path in paths]
    try:
        return scan(sources, wanted)
    finally:
        for source in sources:
            source.close()


def test_every_canary_is_found_where_it_was_planted(server: Server, box: Sandbox) -> None:
    values = canaries()
    plant(box, values)
    kept = box.create_snapshot()
    report = search(server, kept.snapshot_id, needles(values))
    assert PAGES in FILES
    assert {hit.needle for hit in report.hits} == set(PLANTED)
    for form in ("base64", "url", "hex"):
        assert (form, form) in {(hit.needle, hit.form) for hit in report.hits}
    for stream in ("gzip", "zlib"):
        assert any(
            hit.inside[0].startswith(stream) for hit in report.hits if hit.needle == stream and hit.inside
        )
    assert not report.streams_cut


def test_the_files_alone_say_in_which_one_it_is(server: Server, box: Sandbox) -> None:
    values = canaries()
    plant(box, values)
    answer = httpx.post(
        f"{server.url}/sandboxes/{box.sandbox_id}/snapshots",
        headers={"X-API-KEY": server.key},
        json={"memory": False},
        timeout=60,
    )
    report = search(server, answer.json()["snapshotID"], needles(values))
    assert {(hit.needle, hit.place) for hit in report.hits if not hit.inside} == {("file", "/home/user/file")}
    assert {hit.needle for hit in report.hits if hit.inside} == {"gzip"}
    assert any("/home/user/file.gz" in hit.inside[0] for hit in report.hits if hit.inside)


def test_a_clean_snapshot_has_none_of_a_thousand_values(server: Server, box: Sandbox) -> None:
    box.commands.run("python3 -c 'import json, ssl, urllib.request'")
    kept = box.create_snapshot()
    report = search(
        server, kept.snapshot_id, [Needle(str(n), secrets.token_urlsafe(24).encode()) for n in range(1000)]
    )
    assert report.clean
    assert sum(report.sources.values()) > 1 << 20


def test_a_snapshot_with_a_secret_is_refused_and_the_sandbox_goes_on(
    server: Server, box: Sandbox, tmp_path: Path
) -> None:
    def snapshot(*words: str) -> tuple[int, str]:
        options = ["snapshot", "--url", server.url, "--api-key", server.key]
        done = CliRunner().invoke(app, [*options, *words])
        return done.exit_code, done.output

    values = canaries()
    clean = box.create_snapshot()
    headers = {"X-API-KEY": server.key}
    body = {"name": "planted", "value": values["heap"]}
    assert httpx.post(f"{server.url}/secrets", headers=headers, json=body).status_code == 201
    plant(box, values)
    before = set((server.data / "snapshots").iterdir())
    with pytest.raises(SandboxException, match="would hold secrets: secret:planted:1") as refused:
        box.create_snapshot()
    assert values["heap"] not in str(refused.value)
    raw = httpx.post(
        f"{server.url}/sandboxes/{box.sandbox_id}/snapshots", headers=headers, json={}, timeout=60
    )
    assert (raw.status_code, raw.json()["error_code"]) == (409, "secret_in_snapshot")
    assert set((server.data / "snapshots").iterdir()) == before
    assert box.commands.run("cat /home/user/file | wc -c").exit_code == 0

    code, said = snapshot("scan", clean.snapshot_id.partition(":")[0], "--json")
    assert code == 0, said
    told = json.loads(said)
    assert told["document"]["result"] == "clean"
    assert [each["id"] for each in told["document"]["searched"]] == ["secret:planted:1"]
    assert json.loads(snapshot("attestation", clean.snapshot_id.partition(":")[0], "--json")[1]) == told
    (tmp_path / "told.json").write_text(said)
    assert snapshot("verify", str(tmp_path / "told.json"), "--key", told["key"])[0] == 0
    (tmp_path / "told.json").write_text(said.replace('"clean"', '"found"'))
    assert snapshot("verify", str(tmp_path / "told.json"), "--key", told["key"])[0] != 0
    for path in server.data.rglob("attestations/*"):
        assert values["heap"] not in path.read_text()


def test_a_build_with_a_secret_in_its_image_is_refused_and_nothing_is_published(
    server: Server, tmp_path: Path
) -> None:
    """Copied in as it is, or made inside in another form."""
    value = "wk/image+" + secrets.token_urlsafe(24)
    masked = bytes(byte ^ MASK for byte in value.encode()).hex()
    headers, body = {"X-API-KEY": server.key}, {"name": "in-image", "value": value}
    assert httpx.post(f"{server.url}/secrets", headers=headers, json=body).status_code == 201
    (tmp_path / "leak.txt").write_text(f"token={value}\n")
    unmask = f'import gzip; v=bytes(b^{MASK} for b in bytes.fromhex("{masked}"))'
    before = set(server.data.glob("attestations/*"))
    for steps, place in (
        ("COPY leak.txt /srv/leak.txt", "/srv/leak.txt"),
        (f'RUN python3 -c \'{unmask}; open("/srv/z", "wb").write(gzip.compress(v))\'', "/srv/z"),
    ):
        (tmp_path / "Dockerfile").write_text(f"FROM base\n{steps}\n")
        done = wardian(server, "build", str(tmp_path), "--name", "leaky", "--json")
        said = json.loads((done.stderr or done.stdout).splitlines()[-1])["error"]
        assert done.returncode != 0
        assert "would hold secrets: secret:in-image:1" in said["message"], said
        assert place in said["message"], said
        assert value not in done.stdout + done.stderr
    assert set(server.data.glob("attestations/*")) == before
    with pytest.raises(SandboxException, match="not found"):
        Sandbox.create("leaky", timeout=60, **access(server))
    (tmp_path / "Dockerfile").write_text("FROM base\nCOPY leak.txt /srv/leak.txt\n")
    (tmp_path / "leak.txt").write_text("nothing\n")
    assert build(server, tmp_path, "--name", "leaky")["image"]
