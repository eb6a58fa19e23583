"""A server that does nothing, quickly: what the SDK, HTTP and a file store cost with no sandbox behind them.

It answers create, run and kill at once with the right bodies, and keeps an uploaded file as a file in memory.
What the official SDK needs against it is the floor under every figure taken through that SDK.
``python -m bench.plain DIRECTORY`` binds a free port of the loopback interface and prints it.
"""

from __future__ import annotations

import base64
import json
import os
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

SANDBOX = {
    "sandboxID": "iplain",
    "templateID": "base",
    "clientID": "plain",
    "envdVersion": "0.6.5",
    "envdAccessToken": "none",
    "domain": None,
}


DETAIL = SANDBOX | {
    "startedAt": "2026-01-01T00:00:00Z",
    "endAt": "2026-01-02T00:00:00Z",
    "cpuCount": 2,
    "memoryMB": 512,
    "diskSizeMB": 2048,
    "state": "running",
}
ENTRY = {"name": "hosts", "type": "FILE_TYPE_FILE", "path": "/etc/hosts", "size": "55", "mode": 420}


def application(directory: Path) -> Starlette:
    """Files go below ``directory``, which should be in memory, as a sandbox's disk is."""
    stored = directory / "file"

    async def create(request: Request) -> Response:
        await request.body()
        return JSONResponse(SANDBOX, status_code=201)

    async def kill(request: Request) -> Response:
        return Response(status_code=204)

    async def describe(request: Request) -> Response:
        return JSONResponse(DETAIL)

    async def stat(request: Request) -> Response:
        await request.body()
        return JSONResponse({"entry": ENTRY})

    async def start(request: Request) -> Response:
        await request.body()
        return StreamingResponse(_ran(), media_type="application/connect+json")

    async def upload(request: Request) -> Response:
        with stored.open("wb") as file:
            async for chunk in request.stream():
                file.write(chunk)
        return JSONResponse([{"name": "file", "type": "file", "path": "/home/user/file"}])

    async def download(request: Request) -> Response:
        return FileResponse(stored)

    return Starlette(
        routes=[
            Route("/v2/sandboxes", create, methods=["POST"]),
            Route("/sandboxes/{id}", kill, methods=["DELETE"]),
            Route("/sandboxes/{id}", describe, methods=["GET"]),
            Route("/filesystem.Filesystem/Stat", stat, methods=["POST"]),
            Route("/process.Process/Start", start, methods=["POST"]),
            Route("/files", upload, methods=["POST"]),
            Route("/files", download, methods=["GET"]),
        ]
    )


async def _ran() -> AsyncIterator[bytes]:
    yield envelope({"event": {"start": {"pid": 2}}})
    yield envelope({"event": {"data": {"stdout": base64.b64encode(b"ok\n").decode()}}})
    yield envelope({"event": {"end": {"exitCode": 0, "exited": True, "status": "exit status 0"}}})
    yield envelope({}, flags=2)


def envelope(message: object, *, flags: int = 0) -> bytes:
    """One message of a Connect stream."""
    body = json.dumps(message).encode()
    return bytes([flags]) + len(body).to_bytes(4, "big") + body


def main() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    os.write(1, f"{listener.getsockname()[1]}\n".encode())
    config = uvicorn.Config(
        application(Path(sys.argv[1])), log_level="warning", access_log=False, loop="uvloop", http="httptools"
    )
    uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main()
