"""Runners to release: directories with a manifest, in Python unless said otherwise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.acceptance.running import House

from wardian.runners.archive import pack
from wardian.runners.tree import read_directory

MAIN = """
import json, os, sys
import harness
if __name__ == "__main__":
    if sys.argv[1:] == ["--self-test"]:
        harness.self_test()
    else:
        from wardian_run import run
        run.result(harness.work(run))
"""
HARNESS = """
VERSION = {version!r}
def self_test():
    {self_test}
def work(run):
    {work}
"""
MANIFEST = """
version = "{version}"
language = "python"
start = ["main.py"]
self_test = ["main.py", "--self-test"]
imports = ["main", "harness"]
self_test_s = {self_test_s}
"""
WORK = (
    'return {"version": VERSION, "file": __file__, "path": sys.path, "kept": open("/home/user/kept").read()}'
)


def python_runner(
    root: Path,
    version: str,
    *,
    work: str = "return VERSION",
    self_test: str = "pass",
    self_test_s: int = 10,
    more: dict[str, str] | None = None,
) -> Path:
    """The directory of a runner that returns what it works out."""
    directory = root / f"runner-{version}"
    files = {
        "main.py": MAIN,
        "harness.py": "import os, sys, time\n"
        + HARNESS.format(version=version, self_test=self_test, work=work.replace("\n", "\n    ")),
        "runner.toml": MANIFEST.format(version=version, self_test_s=self_test_s),
        **(more or {}),
    }
    for name, text in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return directory


def release(house: House, directory: Path, name: str, **query: Any) -> dict[str, Any]:
    """Release a directory, over the API; what is told of it, the release first of all."""
    packed = pack(read_directory(directory))
    answer = house.http.post("/wardian/runners", params={"name": name, **query}, content=packed)
    assert answer.status_code == 201, answer.text
    told = answer.json()
    first: dict[str, Any] = told["releases"][0]
    return first | {"runner": told}
