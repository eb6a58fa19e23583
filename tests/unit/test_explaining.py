"""What is told of two builds that are not the same: which files, and why."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from wardian.builds import explaining
from wardian.builds.comparing import PATHS_MAX, Comparisons
from wardian.builds.plans import kept
from wardian.images.difference import How
from wardian.images.erofs import make_image
from wardian.isolation.port import RootImage
from wardian.model.build import Base, BaseKind, Lock, Plan, Stage, Step, StepKind

DIGEST = "sha256:" + "0" * 64


def told(*steps: Step, **lock: Any) -> dict[str, Any]:
    """What the API tells of a build."""
    stages = (
        Stage("unused", Base(BaseKind.TEMPLATE, "base"), (Step(StepKind.RUN, ("not", "told")),)),
        Stage("last", Base(BaseKind.TEMPLATE, "base"), steps),
    )
    facts = {"base": {}, "packages": {}, "files": {}, "steps": [], "tree": DIGEST, "image": DIGEST}
    return {
        "plan": kept(Plan(stages)),
        "lock": asdict(Lock(**{**facts, **lock})),
        "start": "",
        "ready": "",
        "resources": {"cpu_count": 2},
        "surroundings": {"env": {}, "user": "user", "workdir": None},
    }


def run(command: str, line: int) -> Step:
    return Step(StepKind.RUN, ("/bin/sh", "-c", command), line, f"RUN {command}")


def copy(digest: str, line: int = 3) -> Step:
    return Step(StepKind.COPY, (".", "/x", "", ""), line, "COPY . /x", files=f"context:{digest * 64}")


def test_each_step_that_differs_is_named_with_its_number_and_line() -> None:
    old = told(run("a", 1), run("b", 2), copy("1"), run("e", 4))
    new = told(run("a", 1), run("c", 2), copy("2"), run("d", 4), run("e", 5))
    assert explaining.reasons(old, new) == [
        "step 2 (line 2): RUN b became RUN c",
        "step 3 (line 3) copies other files: COPY . /x",
        "step 4 (line 4) is new: RUN d",
    ]
    assert explaining.reasons(new, old)[-1] == "step 4 is gone: RUN d"


def test_arguments_bases_and_versions_are_reasons_too() -> None:
    step = run("echo $X", 1)
    given = Step(step.kind, ("/usr/bin/env", "X=1", *step.args), step.line, step.text)
    old = told(step, base={"last.digest": "1"}, packages={"python": {"six": "1"}})
    new = told(given, base={"last.digest": "2"}, packages={"python": {"six": "2"}})
    assert explaining.reasons(old, new) == [
        "step 1 (line 1) was given other arguments: RUN echo $X",
        "base last.digest: 1 became 2",
        "python package six: 1 became 2",
    ]


def test_a_result_that_no_input_accounts_for_is_a_commands() -> None:
    assert explaining.reasons(told(run("date", 1)), told(run("date", 7))) == [
        "a command of a RUN, which gave another result than before"
    ]
    assert explaining.reasons(told(), {**told(), "lock": None}) == [explaining.NOT_TOLD]
    many = {"python": {f"p{number}": "1" for number in range(100)}}
    assert len(explaining.reasons(told(), told(packages=many))) == explaining.REASONS_MAX + 1


def test_settings_are_told_apart_from_files() -> None:
    new = {**told(), "start": "x", "surroundings": {"env": {"A": "1"}, "user": "u", "workdir": None}}
    assert explaining.settings(told(), new) == [
        "start: nothing became x",
        "environment: A: nothing became 1",
        "processes: user: user became u",
    ]


@pytest.fixture
def images(tmp_path: Path) -> list[RootImage]:
    found = []
    for number in (1, 2):
        tree = tmp_path / f"tree{number}"
        (tree / "many").mkdir(parents=True)
        (tree / "a\x1b[2J\udcff").write_text("x" * number)
        for name in range(number, PATHS_MAX + 10 * number):
            (tree / "many" / str(name)).touch()
        (tree / f"usr/lib/python3/dist-packages/six-{number}.0.dist-info").mkdir(parents=True)
        make_image(tree, tmp_path / f"{number}.erofs")
        found.append(RootImage(tmp_path / f"{number}.erofs", f"sha256:{number}"))
    return found


async def test_files_are_compared_and_what_is_told_is_bounded(images: list[RootImage]) -> None:
    comparisons = Comparisons()
    found = await comparisons.of(*images)
    assert found.counts == {How.ADDED: 10 + 1, How.REMOVED: 1 + 1, How.CHANGED: 1}
    assert await comparisons.of(*images) is found
    assert not await comparisons.of(images[0], images[0])
    told = {
        "counts": {how.value: count for how, count in found.counts.items()},
        "paths": [asdict(change) for change in found.changes[:3]],
        "directories": [asdict(count) for count in found.directories],
        "packages": {kind: [asdict(each) for each in found.packages[kind]] for kind in found.packages},
    }
    lines = explaining.files(told)
    assert lines[0] == "11 added, 2 removed, 1 changed"
    assert lines[1].startswith("  ~ /a\\x1b[2J\\udcff  content ")
    assert lines[4:] == [
        "  and 11 more",
        "most of them in:",
        "  /many: +10 -1 ~0",
        "  /usr/lib/python3: +1 -1 ~0",
        "  /: +0 -0 ~1",
        "python packages:",
        "  ~ six 1.0 → 2.0",
    ]
