"""`wardian template explain`: which files and packages differ between two builds, and because of what."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import pytest
from tests.acceptance.conftest import Server
from tests.acceptance.templates import build, key_of, wardian

pytestmark = pytest.mark.timeout(300)

FIRST = "FROM base\nCOPY a.txt /srv/\nRUN pip install --break-system-packages six==1.16.0\n"
SECOND = FIRST.replace("1.16", "1.17") + "RUN echo x > /srv/new && rm /etc/motd\nENV A=b\n"


def test_files_and_reasons_of_two_builds(server: Server, tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text(FIRST)
    (tmp_path / "a.txt").write_text("1")
    build(server, tmp_path, "--name", "explained:one")
    (tmp_path / "Dockerfile").write_text(SECOND)
    (tmp_path / "a.txt").write_text("2")
    build(server, tmp_path, "--name", "explained:two")

    done = wardian(server, "explain", "explained:one", "explained:two", "--paths", "1000")
    assert done.returncode == 1, done.stderr
    said = done.stdout.splitlines()
    assert "    - /etc/motd" in said
    assert "    + /srv/new" in said
    assert any(line.startswith("    ~ /srv/a.txt  content ") for line in said)
    assert said[said.index("  python packages:") + 1] == "    ~ six 1.16.0 → 1.17.0"
    why = said[said.index("why:") + 1 :]
    install = "pip install --break-system-packages six=="
    assert why[:3] == [
        "  step 3 (line 2) copies other files: COPY a.txt /srv/",
        f"  step 4 (line 3): RUN {install}1.16.0 became RUN {install}1.17.0",
        "  step 5 (line 4) is new: RUN echo x > /srv/new && rm /etc/motd",
    ]
    assert "  python package six: 1.16.0 became 1.17.0" in why
    assert "environment: A: nothing became b" in why

    told = json.loads(wardian(server, "explain", "explained:one", "explained:two", "--json").stdout)
    assert (told["same"], len(told["files"]["paths"])) == (False, 20)
    assert sum(told["files"]["counts"].values()) > 20
    same = wardian(server, "explain", "explained:one", "explained:one")
    assert (same.returncode, same.stdout.partition(":")[0]) == (0, "the same files, byte for byte")


def test_another_tenants_files_are_not_compared(server: Server, tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM base\n")
    mine = build(server, tmp_path, "--name", "unseen")
    key = key_of(server, "curious")
    for reference in ("unseen", mine["buildID"], mine["templateID"]):
        query = {"old": "base", "new": reference}
        answer = httpx.get(f"{server.url}/wardian/differences", params=query, headers={"X-API-KEY": key})
        assert (answer.status_code, answer.json()["message"]) == (404, f"template '{reference}' not found")
