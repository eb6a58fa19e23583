"""The README's first example. Start `uv run wardian serve`, and set the variables it prints."""

# ruff: noqa: T201

import os

from e2b import Sandbox

# Two variables point the official SDK at your own machine; `wardian serve` prints them with the key.
assert os.environ["E2B_API_URL"] == os.environ["E2B_SANDBOX_URL"]

with Sandbox.create(timeout=60, metadata={"made-by": "readme"}) as sandbox:
    sandbox.files.write("hello.py", "print(6 * 7)")
    answer = sandbox.commands.run("python3 hello.py").stdout.strip()
    assert answer == "42"
    print("the sandbox says", answer)
