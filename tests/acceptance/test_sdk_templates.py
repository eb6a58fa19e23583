"""The template API as the official SDKs speak it: each release builds, watches, fails, names and tags.

On a server of its own, with registries beside it: one stands for Docker's, which the SDKs' named images are
of, one wants a password. The default suite drives the newest ones of `e2b`, ``make test-sdks`` all.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.acceptance.conftest import Server, serve, stop
from tests.acceptance.sdks.releases import SDKS, Release, environment, is_newest, of, run_program
from tests.acceptance.templates import Api, is_over, messages
from tests.images.busybox import busybox_layers
from tests.images.oci_images import image
from tests.images.registry import registry

from wardian.images.catalog import default_cache

pytestmark = pytest.mark.timeout(400)

DRIVE_S = 300
HUB = ("library/python:3", "library/node:lts")
MIRROR = """
[[registry]]
prefix = "docker.io"
location = "docker.io"
[[registry.mirror]]
location = "{hub}"
insecure = true
"""


@dataclass(frozen=True, slots=True)
class Place:
    """A server, and the registry that wants a password."""

    server: Server
    private: str

    def drive(self, *command: str | Path) -> dict[str, str]:
        """What a program that drives a client says at its end."""
        said = run_program(*map(str, command), self.private, env=environment(self.server), timeout=DRIVE_S)
        outcome: dict[str, str] = json.loads(said.splitlines()[-1])
        return outcome


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    directory = tmp_path_factory.mktemp("sdk-templates")
    (directory / "data").mkdir()
    made = image(busybox_layers(), {"Env": ["PATH=/usr/local/bin:/usr/bin:/bin", "PYTHON_VERSION=3"]})
    with (
        registry(made, names=HUB) as hub,
        registry(made, user="me", password="secret-word") as private,
        pytest.MonkeyPatch.context() as patch,
    ):
        (config := directory / ".config/containers").mkdir(parents=True)
        (config / "registries.conf").write_text(MIRROR.format(hub=hub))
        patch.setenv("WARDIAN_PRIVATE_REGISTRIES", f"{hub},{private}")
        patch.setenv("WARDIAN_CACHE", str(default_cache()))
        with patch.context() as at_home:
            at_home.setenv("HOME", str(directory))  # where skopeo looks for mirrors
            server = serve(directory / "data")
        try:
            yield Place(server, private)
        finally:
            stop(server)


def is_default(release: Release) -> bool:
    return release.package == "e2b" and is_newest(release)


def lacking(outcome: dict[str, str]) -> set[str]:
    return {step for step, how in outcome.items() if how != "ok"}


@pytest.mark.parametrize("release", of("python", short=is_default))
def test_a_python_sdk_builds_templates(place: Place, release: Release) -> None:
    python = release.installed() / "bin/python"
    prefix = f"py-{release.package}-{release.version}"
    outcome = place.drive(python, SDKS / "templates_tour.py", release.package, prefix)
    assert lacking(outcome) == release.lacks_of_templates
    if "tags" not in release.lacks_of_templates:
        awaited = SDKS / "templates_tour_async.py"
        assert lacking(place.drive(python, awaited, release.package, f"{prefix}-async")) == set()


@pytest.mark.parametrize("release", of("javascript", short=is_default))
def test_a_javascript_sdk_builds_templates(place: Place, release: Release) -> None:
    directory = release.installed()
    shutil.copy(SDKS / "templates_tour.mjs", directory)  # node looks for packages beside the file that asks
    outcome = place.drive("node", directory / "templates_tour.mjs", f"js-{release.version}")
    assert lacking(outcome) == set()


def test_the_second_version_of_the_api_builds_too(place: Place) -> None:
    """As clients before tags speak it: they have aliases, and are answered with the whole template."""
    with Api(place.server) as api:
        body = {"alias": "second-version", "cpuCount": 1, "memoryMB": 512}
        asked = api.call("POST", "/v2/templates", body)
        assert asked.status_code == 202
        told = asked.json()
        assert (told["aliases"], told["buildStatus"], told["memoryMB"]) == (
            ["second-version"],
            "waiting",
            512,
        )
        address = f"/templates/{told['templateID']}/builds/{told['buildID']}"
        step = {"type": "run", "args": ["echo said"], "filesHash": None, "force": False}
        start = {"fromImage": "e2bdev/base", "startCmd": "", "readyCmd": "", "steps": [step], "force": False}
        assert api.call("POST", f"/v2{address}", start).status_code == 202
        done = api.until(address, is_over)
        assert (done["status"], "said" in messages(done)) == ("ready", True)
        assert api.call("POST", f"/v2{address}", start).status_code == 400
        first = api.call("POST", "/templates", {"dockerfile": "FROM x", "alias": "first"})
        assert (first.status_code, first.json()["message"][:9]) == (501, "building ")
