"""The other manifests, what they copy, and locks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wardian.builds import find, lock
from wardian.builds.copying import Standing, lay_out
from wardian.builds.errors import BadManifest, BuildFailed
from wardian.builds.expand import BadExpansion, expand
from wardian.builds.ignore import Ignore, parse_ignore
from wardian.builds.keys import chain, ground_key
from wardian.builds.packing import Folder, Unpackable
from wardian.builds.plans import plan_of
from wardian.builds.pyproject import read_pyproject
from wardian.builds.trees import DIRECTORY, Item
from wardian.builds.wardian_toml import read_wardian_toml
from wardian.model.build import BaseKind, Lock, Step, StepKind, Surroundings
from wardian.model.errors import Invalid


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Folder]:
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "main.py").write_text("print(1)\n")
    made = Folder(tmp_path, Ignore())
    yield made
    made.close()


def test_a_wardian_toml_is_read_whole(folder: Folder) -> None:
    name, plan = read_wardian_toml(
        '[template]\nname = "t"\n[base]\npackages = ["jq"]\n[[step]]\nrun = "x"\n[[step]]\n'
        'copy = "app"\nto = "/a"\nmode = "600"\n[[step]]\nenv = {A = "$B"}\n'
        '[start]\ncommand = "go"\nports = [1]\n'
        "[resources]\ncpu = 3\n",
        folder,
    )
    assert (name, plan.resources.cpu_count, plan.start, plan.ports) == ("t", 3, "go", (1,))
    (stage,) = plan.stages
    assert (stage.base.kind, stage.base.reference, stage.base.packages) == (
        BaseKind.DEBIAN,
        "bookworm",
        ("jq",),
    )
    assert [(step.kind, step.args, step.line) for step in stage.steps] == [
        (StepKind.RUN, ("/bin/bash", "-c", "x"), 5),
        (StepKind.COPY, (".", "/a", "", "600"), 7),
        (StepKind.ENV, ("A", "$B"), 11),
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[base]\nimage = 'x'\ntemplate = 'y'\n", "one base"),
        ("\n[start]\n\ncomand = 'x'\n", "wardian.toml:4: start.comand is not known"),
        ("[[step]]\nrun = 'x'\nuser = 'y'\n", "wardian.toml:1: step.1: a step is one of"),
        ("[[step]]\nrun = 'x'\n[[step]]\ncopy = 'no'\nto = '/'\n", "wardian.toml:3: there is no 'no'"),
        ("[resources]\ncpu = 0\n", "cpu_count must be"),
        ("x = [", "not TOML"),
    ],
)
def test_a_wrong_wardian_toml_is_refused_with_its_line(folder: Folder, text: str, words: str) -> None:
    with pytest.raises(BadManifest) as caught:
        read_wardian_toml(text, folder)
    assert words in str(caught.value)


def test_a_project_installs_what_its_lock_says(folder: Folder) -> None:
    digest = "sha256:" + "a" * 64
    (folder.directory / "uv.lock").write_text(
        'version = 1\n[[package]]\nname = "p"\nversion = "1"\nsource = { virtual = "." }\n'
        'dependencies = [{ name = "six", marker = "sys_platform == \'linux\'" }]\n'
        '[[package]]\nname = "six"\nversion = "1.16"\nsource = { registry = "https://x" }\n'
        f'wheels = [{{ url = "u", hash = "{digest}" }}]\n'
        '[[package]]\nname = "dev"\nversion = "2"\nsource = { registry = "https://x" }\n'
    )
    project = '[project]\nname = "P"\nversion = "1"\nrequires-python = ">=3.10"\n'
    plan = read_pyproject(project, folder)
    wanted = plan.stages[0].steps[1].files.removeprefix("context:")
    assert (
        f"six==1.16 ; sys_platform == 'linux' --hash={digest}".encode()
        in folder.archives[wanted].read_bytes()
    )
    assert b"dev" not in folder.archives[wanted].read_bytes()
    assert "--require-hashes" in plan.stages[0].steps[2].args[-1]
    with pytest.raises(BadManifest, match=r"the base has Python 3\.11"):
        read_pyproject(project.replace(">=3.10", ">=3.13"), folder)


def test_variables_of_one_step_are_set_at_once() -> None:
    """What one of them says of another is what that was before, as in Docker."""
    step = Step(StepKind.ENV, ("A", "2", "B", "$A"), expand=True)
    _, around = chain("", Surroundings(env={"A": "1"}), [step], lambda files: "")
    assert around.env == {"A": "2", "B": "1"}


@pytest.mark.parametrize(
    ("kind", "args"),
    [("run", []), ("copy", ["a", "b"]), ("env", ["A"]), ("env", ["A", "1", "B"]), ("user", ["a\0b"])],
)
def test_a_plan_that_is_none_is_refused(kind: str, args: list[str]) -> None:
    base = {"kind": "template", "reference": "base"}
    plan = {"stages": [{"name": "s", "base": base, "steps": [{"kind": kind, "args": args}]}]}
    with pytest.raises(Invalid, match=f"step 1 is no {kind}"):
        plan_of(json.dumps(plan).encode())
    with pytest.raises(Invalid, match="a port is between"):
        plan_of(json.dumps({"stages": [], "ports": [70000]}).encode())


@settings(deadline=None)
@given(st.text(max_size=300))
def test_no_text_breaks_a_parser(text: str) -> None:
    nowhere = Folder(Path("/nonexistent-wardian"), Ignore())
    for read in (read_wardian_toml, read_pyproject, lambda text, files: parse_ignore(text)):
        with suppress(BadManifest):
            read(text, nowhere)
    for parse in (lock.decode, lambda text: expand(text, {})):
        with suppress(Invalid, BadExpansion):
            parse(text)
    nowhere.close()


def test_the_manifest_of_a_directory(tmp_path: Path) -> None:
    with pytest.raises(BadManifest, match="there is no manifest"):
        find.find(tmp_path)
    for name in ("pyproject.toml", "Dockerfile", "wardian.toml"):
        (tmp_path / name).touch()
        assert find.find(tmp_path).name == name
    assert find.find(tmp_path, "Dockerfile").name == "Dockerfile"


@pytest.mark.parametrize(
    ("rules", "path", "excluded"),
    [
        ("*.log", "a.log", True),
        ("*.log", "d/a.log", False),
        ("**/*.log", "d/e/a.log", True),
        ("d", "d/e", True),
        ("d\n!d/keep", "d/keep", False),
        ("/d/", "d", True),
        ("# d", "d", False),
        ("a[0-9]?", "a1b", True),
    ],
)
def test_dockerignore_has_dockers_rules(rules: str, path: str, excluded: bool) -> None:
    assert parse_ignore(rules).excludes(path) is excluded


def test_symlinks_are_packed_and_never_followed(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/etc")
    folder = Folder(tmp_path, Ignore())
    packed = folder.pack(["link"])
    assert b"/etc" in folder.archives[packed.reference.removeprefix("context:")].read_bytes()
    with pytest.raises(Unpackable, match="behind a symlink"):
        folder.pack(["link/passwd"])
    folder.close()


async def test_a_copy_follows_the_machines_symlinks_and_merges() -> None:
    items = {
        "d": DIRECTORY,
        "d/bin": DIRECTORY,
        "d/bin/x": Item("file", 0o755, 1),
        "f": Item("file", 0o644, 1),
    }
    there = {"/": "/", "/bin": "/usr/bin", "/usr": "/usr", "/usr/bin": "/usr/bin", "/opt": "/opt"}

    async def stand(path: str) -> Standing:
        above, _, name = path.rpartition("/")
        real = path if path == "/" else f"{there.get(above, above)}/{name}".replace("//", "/")
        return Standing(there[path], "directory") if path in there else Standing(real, "absent")

    placed = await lay_out(items, "d", "/", into=True, stand=stand)
    assert [each.path for each in placed] == ["/usr/bin", "/usr/bin/x"]
    renamed = await lay_out(items, "f", "/opt/new/g", into=False, stand=stand)
    assert [each.path for each in renamed] == ["/opt/new", "/opt/new/g"]
    inside = await lay_out(items, "f", "/opt", into=False, stand=stand)
    assert [each.path for each in inside] == ["/opt/f"]


def test_a_key_depends_on_all_that_came_before() -> None:
    around = Surroundings()
    steps = [
        Step(StepKind.ENV, ("A", "1"), expand=True),
        Step(StepKind.RUN, ("x",)),
        Step(StepKind.RUN, ("y",)),
    ]
    keyed, after = chain(ground_key("sha256:0", around), around, steps, str)
    other, _ = chain(
        ground_key("sha256:0", around),
        around,
        [Step(StepKind.ENV, ("A", "$PATH"), expand=True), *steps[1:]],
        str,
    )
    assert after.env == {"A": "1"}
    assert not {each.key for each in keyed} & {each.key for each in other}
    assert [each.key for each in chain(ground_key("sha256:0", around), around, steps, str)[0]] == [
        each.key for each in keyed
    ]


def test_a_lock_comes_back_and_says_what_differs() -> None:
    digest = "sha256:" + "0" * 64
    made = Lock({"main.digest": digest}, {"python": {"six": "1"}}, {"COPY a": digest}, ["k"], digest, digest)
    assert lock.plain(lock.decode(lock.encode(made))) == lock.plain(made)
    newer = Lock(made.base, {"python": {"six": "2"}}, made.files, made.steps, "sha256:" + "1" * 64, digest)
    with pytest.raises(BuildFailed, match="python package six: 1 became 2"):
        lock.check(made, newer)
