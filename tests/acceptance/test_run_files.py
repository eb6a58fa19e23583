"""Files that a run hands over outlive its machine, by name and digest, and are its tenant's alone."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from tests.acceptance.running import House
from tests.acceptance.templates import key_of

pytestmark = pytest.mark.timeout(300)

PROGRAM = """
from wardian_run import RunError
def refused(*arguments):
    try:
        return run.file(*arguments)
    except RunError as error:
        return error.code
os.makedirs("out/folder")
with open("out/report.txt", "w") as file:
    file.write("first")
first = run.file("out/report.txt")
with open("out/report.txt", "w") as file:
    file.write("second")
with open("out/big", "wb") as file:
    file.truncate((64 << 20) + 1)
with open("out/data", "wb") as file:
    file.write(bytes(range(256)) * 20_000)
os.mkfifo("out/pipe")
os.symlink("/dev/zero", "out/endless")
run.result({
    "handed": [first, run.file("out/report.txt"), run.file("out/data", "a-b_c.bin")],
    "refused": [
        refused("out/data", "../up"), refused("out/data", ".hidden"), refused("out/none"),
        refused("out/folder"), refused("out/pipe"), refused("out/big"), refused("out/endless"),
    ],
})
"""
DATA = bytes(range(256)) * 20_000


def digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def test_files_outlive_the_machine_that_made_them(house: House, tmp_path: Path) -> None:
    house.freeze("writer", PROGRAM)
    run = house.begin("writer")
    told = house.end(run)
    assert (told["state"], told["failure"]) == ("succeeded", None)
    kept = [
        {"name": "a-b_c.bin", "size": len(DATA), "digest": digest(DATA)},
        {"name": "report.txt", "size": 6, "digest": digest(b"second")},
    ]
    first = {"name": "report.txt", "size": 5, "digest": digest(b"first")}
    assert told["result"]["handed"] == [first, kept[1], kept[0]]
    assert told["result"]["refused"] == [
        "bad_file_name",
        "bad_file_name",
        "file_not_found",
        "not_a_file",
        "not_a_file",
        "file_too_big",
        "not_a_file",
    ]
    assert house.state_of(told["sandboxID"]) == "gone"
    assert house.call("GET", f"/runs/{run}/files").json() == kept
    whole = house.call("GET", f"/runs/{run}/files/a-b_c.bin")
    assert (whole.content, whole.headers["etag"]) == (DATA, f'"{digest(DATA)}"')
    assert house.call("GET", f"/runs/{run}/files/none").json()["error_code"] == "file_not_found"
    # Nothing half-written, and nothing that was replaced.
    assert len(list((house.server.data / "files" / run).iterdir())) == 2
    # Another tenant's run is like one that does not exist.
    with httpx.Client(headers={"X-API-KEY": key_of(house.server, "others")}, trust_env=False) as other:
        for path in ("files", "files/report.txt"):
            answer = other.get(f"{house.server.url}/wardian/runs/{run}/{path}")
            assert (answer.status_code, answer.json()["error_code"]) == (404, "run_not_found")
    wardian = (str(Path(sys.executable).with_name("wardian")), "run", "--data", str(house.server.data))
    fetch = [*wardian, "files", run, "--to", str(tmp_path / "got"), "--json"]
    said = subprocess.run(fetch, capture_output=True, text=True, check=True)
    assert json.loads(said.stdout) == kept
    assert (tmp_path / "got/report.txt").read_bytes() == b"second"
    assert (tmp_path / "got/a-b_c.bin").read_bytes() == DATA
