"""Which of the two planes a request is for."""

from __future__ import annotations

import pytest

from wardian.api.dispatch import is_data

ID = b"i0123456789abcdefghi"
NAMED = {b"e2b-sandbox-id": ID, b"e2b-sandbox-port": b"49983"}


@pytest.mark.parametrize(
    ("path", "headers", "data"),
    [
        ("/v2/sandboxes", {}, False),
        ("/health", {}, False),
        ("/health", NAMED, True),
        ("/health", {b"x-access-token": b"t"}, True),
        ("/metrics", NAMED, True),
        ("/files", {}, True),
        ("/volumecontent/v/file", {}, False),
        ("/volumecontent/v/file", NAMED, True),  # a sandbox's own web server
        ("/process.Process/Start", {}, True),
        ("/filesystem.Filesystem/Stat", {}, True),
        ("/", {b"host": b"8080-" + ID + b".localhost:9273"}, True),
        ("/", {b"host": b"api.sandbox.test"}, False),
        ("/", {b"host": b"127.0.0.1:9273"}, False),
        # AgentSphere names the sandbox where it speaks to us.
        (f"/sandboxes/{ID.decode()}/connect", NAMED | {b"x-api-key": b"k"}, False),
        # A sandbox's own web server may have such a path.
        (f"/sandboxes/{ID.decode()}/connect", NAMED, True),
        ("/sandboxes/x/connect", {**NAMED, b"e2b-sandbox-port": b"8080", b"x-api-key": b"k"}, True),
    ],
)
def test_the_plane_a_request_is_for(path: str, headers: dict[bytes, bytes], data: bool) -> None:
    scope = {"type": "http", "path": path, "query_string": b"", "headers": list(headers.items())}
    assert is_data(scope) is data
