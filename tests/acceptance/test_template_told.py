"""Every answer about a sandbox says its template's build, and the digest of the files it began with."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from tests.acceptance.conftest import Server


@pytest.fixture
def http(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, headers={"X-API-KEY": server.key}, timeout=60) as client:
        yield client


def test_every_answer_says_the_build_and_the_files(http: httpx.Client) -> None:
    base = http.get("/wardian/builds/base").json()
    made = http.post("/v2/sandboxes", json={"templateID": "base", "timeout": 60}).json()
    path = f"/sandboxes/{made['sandboxID']}"
    told: dict[str, Any] = {
        "create": made,
        "v1 create": http.post("/sandboxes", json={"templateID": "base"}).json(),
    }
    told["detail"] = http.get(path).json()
    told["connect"] = http.post(f"/v2{path}/connect", json={"timeout": 60}).json()
    told["fork"] = http.post(f"{path}/fork", json={"count": 1}).json()[0]["sandbox"]
    snapshot = http.post(f"{path}/snapshots", json={}).json()["snapshotID"]
    told["of a snapshot"] = http.post("/v2/sandboxes", json={"templateID": snapshot, "timeout": 60}).json()
    assert http.post(f"{path}/pause").status_code == 204
    told["paused"] = http.get(path).json()
    for listing in ("/sandboxes", "/v2/sandboxes"):
        items = http.get(listing, params={"state": "running,paused"}).json()
        told |= {f"{listing} {item['sandboxID']}": item for item in items}
    told["resume"] = http.post(f"{path}/resume", json={"timeout": 60}).json()
    for verb, answer in told.items():
        assert (answer["templateBuildID"], answer["templateDigest"]) == (base["buildID"], base["tree"]), verb
    for sandbox_id in {answer["sandboxID"] for answer in told.values() if "state" not in answer}:
        http.delete(f"/sandboxes/{sandbox_id}")
    http.delete(f"/templates/{snapshot}")
