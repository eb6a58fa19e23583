"""One Dockerfile with every instruction that is understood, built on a real server: what came of each."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator

import pytest
from e2b import Sandbox
from tests.acceptance.conftest import Server
from tests.acceptance.templates import build

pytestmark = pytest.mark.timeout(300)

DOCKERFILE = r"""# syntax=docker/dockerfile:1
ARG BASE=absent
FROM ${BASE} AS made
RUN groupadd -g 4000 crew && useradd -u 4001 -g 4000 maker
RUN install -d -o maker -g crew -m 750 /out && echo kept > /out/kept && chown maker:crew /out/kept

FROM base
ARG WHO=nobody
LABEL maintainer="nobody"
ENV GREETING="hello $WHO" PATH=/opt/bin:$PATH
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
RUN groupadd -g 4000 crew && useradd -u 4001 -m -G sudo maker
RUN if false | true; then exit 1; fi
COPY --from=made /out /out
COPY --from=made --chown=1000:4000 --chmod=600 /out/kept /srv/mine
COPY --chown=maker:crew --chmod=4755 app/run.sh /opt/bin/run
COPY app /srv/app
ADD files.tar.gz /srv/
ADD --chown=maker files.tar.gz /srv/theirs
ADD note.txt app/run.sh /srv/several/
COPY files.tar.gz /srv/whole.tar.gz
COPY <<EOF <<'RAW' /srv/texts/
says $WHO
EOF
says $WHO
RAW
WORKDIR /srv/app
RUN <<EOF
set -e
echo "$PWD $GREETING" > /srv/heredoc
EOF
USER maker:crew
WORKDIR /work/deep
COPY note.txt of-root
RUN ["/bin/sh", "-c", "id -u > ids; id -g >> ids; id -G >> ids"]
EXPOSE 8000
ENTRYPOINT ["python3", "-m", "http.server"]
CMD ["8000"]
HEALTHCHECK --interval=1s CMD curl -sf localhost:8000/of-root
"""


@pytest.fixture(scope="module")
def made(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    """A sandbox of what that Dockerfile says."""
    place = tmp_path_factory.mktemp("dockerfile")
    (place / "app" / "inner").mkdir(parents=True)
    (place / "app" / "run.sh").write_text("#!/bin/sh\necho ran\n")
    (place / "app" / "inner" / "secret.key").write_text("x")
    (place / "app" / "inner" / "kept.key").write_text("x")
    (place / ".dockerignore").write_text("**/*.key\n!app/inner/kept.key\n")
    (place / "note.txt").write_text("a note\n")
    with tarfile.open(place / "files.tar.gz", "w:gz") as tar:
        for name, kind, mode in (("in", tarfile.DIRTYPE, 0o711), ("in/file", tarfile.REGTYPE, 0o640)):
            info = tarfile.TarInfo(name)
            info.type, info.mode, info.uid, info.gid = kind, mode, 33, 34
            info.size = 6 if kind == tarfile.REGTYPE else 0
            tar.addfile(info, io.BytesIO(b"inside"))
    (place / "Dockerfile").write_text(DOCKERFILE)
    told = build(server, place, "--name", "everything", "--build-arg", "BASE=base", "--build-arg", "WHO=you")
    assert told["warm"]
    sandbox = Sandbox.create("everything", timeout=600)
    yield sandbox
    sandbox.kill()


def facts(sandbox: Sandbox, *paths: str) -> list[str]:
    """Owner, group and mode of each."""
    ran = sandbox.commands.run(f"stat -c '%u:%g %a' {' '.join(paths)}", user="root")
    return ran.stdout.splitlines()


def test_files_of_a_stage_stay_whose_they_are_unless_somebody_is_named(made: Sandbox) -> None:
    assert facts(made, "/out", "/out/kept", "/srv/mine") == [
        "4001:4000 750",
        "4001:4000 644",
        "1000:4000 600",
    ]


def test_files_beside_the_manifest_are_roots_unless_somebody_is_named(made: Sandbox) -> None:
    """Also after a USER, as in Docker."""
    assert facts(made, "/srv/app/run.sh", "/work/deep/of-root", "/opt/bin/run") == [
        "0:0 644",
        "0:0 644",
        "4001:4000 4755",
    ]
    assert made.commands.run("run").stdout == "ran\n"
    assert made.commands.run("ls -A /srv/app /srv/app/inner /srv/several").stdout.split() == [
        *("/srv/app:", "inner", "run.sh"),
        *("/srv/app/inner:", "kept.key"),
        *("/srv/several:", "note.txt", "run.sh"),
    ]


def test_an_added_archive_is_unpacked_with_its_owners(made: Sandbox) -> None:
    assert facts(made, "/srv/in", "/srv/in/file") == ["33:34 711", "33:34 640"]
    assert facts(made, "/srv/theirs/in/file") == ["4001:4001 640"]
    assert made.commands.run("tar -tzf /srv/whole.tar.gz").stdout == "in/\nin/file\n"


def test_heredocs_arguments_and_variables(made: Sandbox) -> None:
    assert made.files.read("/srv/texts/EOF") == "says you\n"
    assert made.files.read("/srv/texts/RAW") == "says $WHO\n"
    assert made.files.read("/srv/heredoc") == "/srv/app hello you\n"
    assert made.commands.run("echo $GREETING $PATH").stdout.startswith("hello you /opt/bin:/")


def test_user_group_and_directory_are_those_of_every_process(made: Sandbox) -> None:
    """In the build, in the start command, and in what the SDK runs; the group named is the only one."""
    assert made.files.read("/work/deep/ids").split() == ["4001", "4000", "4000"]
    now = made.commands.run("id -u; id -g; id -G; pwd").stdout
    assert now.split() == ["4001", "4000", "4000", "/work/deep"]
    status = made.commands.run("cat /proc/$(pgrep -xf 'python3 -m http.server 8000')/status").stdout
    assert "\nGid:\t4000\t" in status
    assert facts(made, "/work/deep", "/work") == ["4001:4000 755"] * 2
    made.files.write("/work/deep/new", "x")
    assert facts(made, "/work/deep/new") == ["4001:4000 644"]


def test_entrypoint_and_command_run_already_and_were_healthy(made: Sandbox) -> None:
    assert made.commands.run("curl -s localhost:8000/of-root").stdout == "a note\n"
