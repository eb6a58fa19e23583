"""A process that has everything imported and forks a server per request.

Starting Python anew would take longer than the rest of a fault test. Requests and answers are JSON lines.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

from tests.faults.scenarios import Place, play

from wardian.isolation.port import Capabilities, IsolationLevel, RootImage


def place_of(request: dict[str, Any]) -> Place:
    probed = Capabilities(
        driver="gvisor",
        level=IsolationLevel.GVISOR,
        usable=True,
        build=request["build"],
        cpu_features=frozenset(request["cpu_features"]),
    )
    root = RootImage(Path(request["root"]), request["root_digest"])
    return Place(Path(request["data"]), Path(request["state"]), root, probed)


def serve(request: dict[str, Any]) -> dict[str, Any]:
    """Fork a server, wait for its end, say how it was."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read_end)
        try:
            told = asyncio.run(play(request["scenario"], place_of(request), request.get("at")))
        except BaseException:
            told = {"crash": traceback.format_exc()}
        os.write(write_end, json.dumps(told).encode())
        os._exit(0)
    os.close(write_end)
    _, status = os.waitpid(child, 0)
    with os.fdopen(read_end, "rb") as pipe:
        raw = pipe.read() if os.WIFEXITED(status) else b""  # a killed server's machines may hold the pipe
    return {"killed": os.WIFSIGNALED(status), "told": json.loads(raw) if raw else None}


def main() -> None:
    for line in sys.stdin:
        print(json.dumps(serve(json.loads(line))), flush=True)  # noqa: T201 - this is the answer


if __name__ == "__main__":
    main()
