"""A registry of one image on the loopback: as much of OCI's distribution specification as pulling takes."""

from __future__ import annotations

import base64
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.images.oci_images import Blob

REPOSITORY, TAG = "team/tool", "1.0"


@contextmanager
def registry(
    made: tuple[Blob, list[Blob]],
    *,
    user: str = "",
    password: str = "",
    names: Sequence[str] = (f"{REPOSITORY}:{TAG}",),
    blobs_at: str = "",
    tokens_at: str = "",
) -> Iterator[str]:
    """Serve the image under ``names``; yields ``host:port``. With a password, only who knows it is answered.

    With ``blobs_at``, whoever asks for a blob is sent there; with ``tokens_at``, everybody is, for a token.
    """
    manifest, blobs = made
    found = {"/v2/": Blob(b"{}", "application/json")}
    for repository, _, tag in (name.partition(":") for name in names):
        found |= {f"/v2/{repository}/manifests/{each}": manifest for each in (tag, manifest.digest)}
        found |= {f"/v2/{repository}/blobs/{blob.digest}": blob for blob in blobs}
    wanted = "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            if blobs_at and "/blobs/" in self.path:
                self._answer(307, Location=blobs_at)
                return
            if tokens_at:
                self._answer(401, **{"WWW-Authenticate": f'Bearer realm="{tokens_at}"'})
                return
            known = not password or self.headers.get("Authorization") == wanted
            blob = found.get(self.path) if known else None
            self.send_response(401 if not known else 404 if blob is None else 200)
            if not known:
                self.send_header("WWW-Authenticate", 'Basic realm="registry"')
            data = blob.data if blob else b"{}"
            self.send_header("Content-Type", blob.media_type if blob else "application/json")
            self.send_header("Content-Length", str(len(data)))
            if blob:
                self.send_header("Docker-Content-Digest", blob.digest)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(data)

        def _answer(self, status: int, **headers: str) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": "0"}.items():
                self.send_header(name, value)
            self.end_headers()

        do_HEAD = do_GET

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
