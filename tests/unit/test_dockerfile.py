"""Dockerfiles: what becomes of each instruction, and that nothing is misunderstood in silence."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wardian.builds.dockerfile import read_dockerfile
from wardian.builds.errors import BadManifest
from wardian.builds.ignore import Ignore
from wardian.builds.packing import Folder
from wardian.images.erofs import TIMESTAMP
from wardian.model.build import KEPT, BaseKind, Plan, Stage, Step, StepKind


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Folder]:
    (tmp_path / "app" / "sub").mkdir(parents=True)
    (tmp_path / "app" / "main.py").write_text("print(1)\n")
    (tmp_path / "app" / "sub" / "x").write_text("x")
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "b.txt").write_text("b")
    for name, member in {"evil": ("../x", tarfile.REGTYPE), "device": ("d", tarfile.CHRTYPE)}.items():
        with tarfile.open(tmp_path / f"{name}.tar", "w") as tar:
            tar.addfile(entry(*member))
    (tmp_path / "large.tar").write_bytes(entry("big", tarfile.REGTYPE, size=1 << 40).tobuf())
    made = Folder(tmp_path, Ignore())
    yield made
    made.close()


def entry(name: str, kind: bytes, **facts: Any) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = kind
    for fact, value in facts.items():
        setattr(info, fact, value)
    return info


def plan(text: str, folder: Folder, **arguments: str) -> Plan:
    return read_dockerfile(text, folder, arguments=arguments)[0]


def last(text: str, folder: Folder, **arguments: str) -> Stage:
    return plan(text, folder, **arguments).stages[-1]


def said(stage: Stage) -> list[Step]:
    """The steps that the Dockerfile itself says."""
    return [step for step in stage.steps if step.line]


def refusal(text: str, folder: Folder, arguments: Mapping[str, str] | None = None) -> str:
    with pytest.raises(BadManifest) as caught:
        read_dockerfile(text, folder, arguments=arguments)
    return str(caught.value)


def test_a_run_is_for_the_shell_unless_it_is_a_list(folder: Folder) -> None:
    steps = said(
        last('FROM base\nRUN a && \\\n  # no\n  b\nRUN ["x", "y z"]\nSHELL ["/bin/bash","-c"]\nRUN c', folder)
    )
    assert [step.args for step in steps] == [
        ("/bin/sh", "-c", "a &&   b"),
        ("x", "y z"),
        ("/bin/bash", "-c", "c"),
    ]
    assert [step.line for step in steps] == [2, 5, 7]


def test_heredocs_are_scripts_input_and_files(folder: Folder) -> None:
    text = "FROM base\nRUN <<EOF\na\nb\nEOF\nRUN python3 <<-'E'\n\tprint(1)\nE\nCOPY <<F /etc/f\nx $Y\nF\n"
    script, piped, copied = said(last(text.replace("FROM base", "FROM base\nARG Y=2"), folder))
    assert script.args[-1] == "a\nb\n"
    assert piped.args[-1] == "python3 <<-'E'\nprint(1)\nE"
    assert copied.args[:2] == ("F", "/etc/f")
    archive = folder.archives[copied.files.removeprefix("context:")]
    assert b"x 2\n" in archive.read_bytes()


def test_arguments_come_before_the_base_and_into_commands(folder: Folder) -> None:
    text = "ARG B=base\nARG V=1\nFROM $B\nARG V\nARG W=${V}2\nENV V2=$W\nRUN env"
    env, run = said(last(text, folder, V="7"))
    assert env.args == ("V2", "72")
    assert run.args[:3] == ("/usr/bin/env", "V=7", "W=72")
    assert last(text, folder, B="wardian/other").base.reference == "other"
    assert "no ARG is called Z" in refusal(text, folder, {"Z": "1"})


def test_variables_of_the_base_are_left_to_the_builder(folder: Folder) -> None:
    (env,) = said(last("FROM base\nENV PATH=\"/opt/bin:$PATH\" A='$x' B=${Q:-d\\}e}", folder))[:1]
    assert env.args[:2] == ("PATH", "/opt/bin:${PATH}")
    assert env.expand
    steps = said(last("FROM base\nENV A='$x' B=\\$y", folder))
    assert [step.args for step in steps] == [("A", "\\$x", "B", "\\$y")]
    assert "no ARG or ENV before it sets" in refusal("FROM base\nCOPY $SRC /x", folder)


def test_a_copy_is_packed_as_it_is_to_lie(folder: Folder) -> None:
    steps = said(
        last(
            "FROM base\nCOPY app/ .\nCOPY a.txt /x\nCOPY *.txt --\nCOPY --chown=1:2 --chmod=600 a.txt y/",
            folder,
        )
    )
    assert [step.args for step in steps] == [
        (".", ".", KEPT, ""),
        ("a.txt", "/x", KEPT, ""),
        (".", "--", KEPT, ""),
        ("a.txt", "y/", "1:2", "600"),
    ]
    assert steps[1].files == steps[3].files  # the same files, the same digest
    again = said(last("FROM base\nCOPY app .", folder))
    assert again[0].files == steps[0].files


@pytest.mark.parametrize("compress", [bytes, gzip.compress, bz2.compress, lzma.compress])
def test_an_added_archive_is_unpacked_and_a_copied_one_is_not(
    folder: Folder, compress: Callable[[bytes], bytes]
) -> None:
    """With its modes and owners; beside other files, which come as they are."""
    archive = folder.directory / "c.tar"
    with tarfile.open(archive, "w") as tar:
        tar.addfile(entry("d/", tarfile.DIRTYPE, mode=0o750, uid=7, gid=8))
        tar.addfile(entry("d/f", tarfile.REGTYPE, mode=0o4711, uid=1001, size=2), io.BytesIO(b"hi"))
        tar.addfile(entry("d/hard", tarfile.LNKTYPE, linkname="d/f"))
        tar.addfile(entry("d/soft", tarfile.SYMTYPE, linkname="/etc"))
    archive.write_bytes(compress(archive.read_bytes()))
    text = "FROM base\nADD c.tar /x\nADD --chown=u c.t?r a.txt y\nCOPY c.tar /z\nADD a.txt app /w/"
    alone, unpacked, beside, copied, plain = said(last(text, folder))
    assert [step.args for step in (alone, unpacked, beside, copied, plain)] == [
        (".", "/x", KEPT, ""),
        (".", "y/", "u", ""),
        ("a.txt", "y/", "u", ""),
        ("c.tar", "/z", KEPT, ""),
        (".", "/w/", KEPT, ""),
    ]
    assert alone.files == unpacked.files
    with tarfile.open(folder.archives[alone.files.removeprefix("context:")]) as tar:
        found = {each.name: each for each in tar}
        assert list(found) == ["d", "d/f", "d/hard", "d/soft"]
        assert tar.extractfile("d/hard").read() == b"hi"  # type: ignore[union-attr]
    directory, file, _, link = found.values()
    assert (directory.mode, directory.uid, directory.gid) == (0o750, 7, 8)
    assert (file.mode, file.uid, file.mtime) == (0o4711, 1001, TIMESTAMP)
    assert (link.issym(), link.linkname) == (True, "/etc")


def test_stages_are_copied_from_by_name_and_number_and_images_become_stages(folder: Folder) -> None:
    text = "FROM base AS one\nFROM one AS two\nFROM base\nCOPY --from=one /a /b\n"
    text += "COPY --from=1 /c d/\nCOPY --from=busybox:1 /e /f"
    made = plan(text, folder)
    assert [stage.name for stage in made.stages] == ["one", "two", "image:busybox:1", "2"]
    assert made.stages[1].base.kind is BaseKind.STAGE
    assert [step.files for step in said(made.stages[-1])] == [
        "stage:one",
        "stage:two",
        "stage:image:busybox:1",
    ]
    assert "no stage 5" in refusal("FROM base\nCOPY --from=5 a b", folder)


@pytest.mark.parametrize(
    ("name", "kind", "reference"),
    [
        ("base", BaseKind.TEMPLATE, "base"),
        ("wardian/base:v1", BaseKind.TEMPLATE, "base:v1"),
        ("mine", BaseKind.TEMPLATE, "mine"),
        ("debian:bookworm-slim", BaseKind.DEBIAN, "bookworm"),
        ("debian:12", BaseKind.DEBIAN, "bookworm"),
        ("python:3.12-slim", BaseKind.IMAGE, "docker://python:3.12-slim"),
        ("oci:/x:y", BaseKind.IMAGE, "oci:/x:y"),
    ],
)
def test_what_a_base_is_called(folder: Folder, name: str, kind: BaseKind, reference: str) -> None:
    made, _ = read_dockerfile(f"FROM {name}", folder, is_template=lambda each: each == "mine")
    assert (made.stages[0].base.kind, made.stages[0].base.reference) == (kind, reference)


@pytest.mark.parametrize(
    ("text", "start"),
    [
        ("CMD a b", "a b"),
        ('CMD ["a", "b c"]', "a 'b c'"),
        ('ENTRYPOINT ["e"]\nCMD ["c"]', "e c"),
        ('ENTRYPOINT ["e"]\nCMD c', "e /bin/sh -c c"),
        ("ENTRYPOINT e\nCMD c", "e"),
        ("RUN x", None),
    ],
)
def test_entrypoint_and_cmd_are_put_together_as_docker_does(
    folder: Folder, text: str, start: str | None
) -> None:
    assert plan(f"FROM base\n{text}", folder).start == start


def test_ports_ready_checks_and_users(folder: Folder) -> None:
    made = plan(
        'FROM base\nEXPOSE 80 8000-8001/tcp\nHEALTHCHECK --interval=1s CMD ["curl", "x"]\nUSER me', folder
    )
    assert made.ports == (80, 8000, 8001)
    assert made.ready == "curl x"
    assert [step.args for step in made.stages[0].steps if step.kind is StepKind.USER] == [("root",), ("me",)]
    grouped = plan("FROM base\nARG G=staff\nUSER me:$G", folder).stages[0].steps
    assert grouped[-2].args == ("me:staff",)
    inherited = plan("FROM base AS a\nEXPOSE 1\nCMD run\nHEALTHCHECK NONE\nFROM a", folder)
    assert (inherited.ports, inherited.start, inherited.ready) == ((1,), "run", "")


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("FROM scratch", 1, "scratch"),
        ("RUN x", 1, "before the first FROM"),
        ("FROM base\nRUN --mount=type=cache x", 2, "--mount is not supported"),
        ("FROM base\n\nVOLUME /x", 3, "VOLUME is not supported"),
        ("FROM base\nRNU x", 2, "unknown instruction RNU"),
        ("FROM base\nADD https://x/y z", 2, "URL"),
        ("FROM base\nCOPY nothing /x", 2, "there is no 'nothing'"),
        ("FROM base\nCOPY ../x /x", 2, "leads out of"),
        ("FROM base\nCOPY --parents a.txt /x", 2, "--parents is not supported"),
        ("FROM base\nUSER a b", 2, "USER takes one name"),
        ("FROM base\nADD --from=x a b", 2, "--from is not supported with ADD"),
        ("FROM base\nADD --checksum=sha256:1 a.txt b", 2, "--checksum is not supported"),
        ("FROM base\n\nADD evil.tar /", 3, "'../x' is not a path inside"),
        ("FROM base\nADD device.tar /", 2, "neither a file, a directory nor a link"),
        ("FROM base\nADD large.tar /", 2, "larger than"),
        ("FROM base\nONBUILD RUN x", 2, "ONBUILD is not supported"),
        ("FROM base\nSTOPSIGNAL 9", 2, "STOPSIGNAL is not supported"),
        ("FROM base\nHEALTHCHECK --x=1 CMD a", 2, "--x is not supported"),
        ("FROM base\nHEALTHCHECK a", 2, "HEALTHCHECK takes CMD"),
        ("FROM base\nRUN <<EOF\n#!/bin/x\nEOF", 2, "begins with #!"),
        ("FROM base\nRUN --network=none x", 2, "--network is not supported"),
        ("FROM base\nCOPY a.txt", 2, "at least a source and a destination"),
        ("FROM base\nWORKDIR --x /", 2, "--x is not supported with WORKDIR"),
        ("FROM base\nEXPOSE 99999", 2, "no range of ports"),
        ("FROM base\nRUN <<EOF\nx", 2, "does not end"),
        ("FROM base\nENV A=${B:?x}", 2, "':-' and ':+'"),
        ("FROM --platform=linux/arm64 base", 1, "linux/amd64"),
        ("FROM debian", 1, "release"),
        ("# escape=x\nFROM base", 1, "escape character"),
        ("FROM base AS a\nFROM base AS a", 2, "two stages"),
        ("FROM base\nSHELL bash", 2, "list"),
        ("FROM base\nLABEL", 2, "says nothing"),
    ],
)
def test_what_is_not_supported_is_refused_with_its_line(
    folder: Folder, text: str, line: int, words: str
) -> None:
    message = refusal(text, folder)
    assert f"Dockerfile:{line}: " in message
    assert words in message


def test_labels_are_remarked_upon(folder: Folder) -> None:
    assert "LABEL is not kept" in read_dockerfile("FROM base\nLABEL a=b", folder)[1][0]


_WORDS = [
    "FROM base",
    "RUN",
    "COPY",
    "ADD",
    "ENV",
    "ARG",
    "CMD",
    "$X",
    "${Y:-",
    "}",
    "<<EOF",
    "EOF",
    "\\",
    "\n",
    '"',
]
_WORDS += [
    "'",
    "[",
    "]",
    "--from=",
    "=",
    "#",
    " ",
    "a",
    "*",
    "USER",
    "WORKDIR",
    "EXPOSE",
    "HEALTHCHECK",
    "\t",
    "`",
]


@settings(deadline=None)
@given(st.lists(st.sampled_from(_WORDS), max_size=40).map("".join) | st.text(max_size=200))
def test_any_text_is_a_plan_or_a_clear_error(text: str) -> None:
    nowhere = Folder(Path("/nonexistent-wardian"), Ignore())
    lines: list[int] = []
    try:
        made, _ = read_dockerfile("FROM base\n" + text, nowhere)
    except BadManifest as error:
        lines.append(error.line)
    else:
        assert made.stages
    finally:
        nowhere.close()
    assert all(lines)
