"""``desktop`` on a server with a domain of its own: ``stream.get_url()`` as it is, over HTTPS, in a browser.

The browser trusts our authority as it would trust any other, and finds the name by the server's proxy.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from e2b_desktop import Sandbox
from tests.acceptance.browser import SHOTS, trusting, watch_stream
from tests.acceptance.builtin import opened, require

NAME = "wardian.test"


def test_the_stream_opens_in_a_browser_over_https(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened("--domain", NAME, "--tls-port", "0", "--proxy-port", "0") as server:
        require(server, "desktop")
        monkeypatch.setenv("E2B_DOMAIN", str(server.facts["domain"]))
        sandbox = Sandbox.create(timeout=600)
        try:
            sandbox.stream.start(require_auth=True)
            url = sandbox.stream.get_url(auth_key=sandbox.stream.get_auth_key())
            assert url.startswith(
                f"https://6080-{sandbox.sandbox_id}.{NAME}:{server.facts['tls_port']}/vnc.html"
            )
            trusting(tmp_path, Path(server.facts["ca"]))
            watch_stream(url, SHOTS / "stream-https.png", home=tmp_path, proxy=str(server.facts["proxy"]))
        finally:
            sandbox.kill()
