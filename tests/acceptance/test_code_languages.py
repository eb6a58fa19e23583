"""R and Java in `run_code`, when their packages are chosen: the template of `examples/template-languages`."""

from __future__ import annotations

import base64
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from e2b_code_interpreter import Sandbox
from tests.acceptance.builtin import house, require
from tests.acceptance.conftest import Server
from tests.acceptance.templates import build, wardian

__all__ = ["house"]  # a fixture

pytestmark = pytest.mark.slow

EXAMPLE = Path(__file__).resolve().parents[2] / "examples/template-languages"


@pytest.fixture(scope="module")
def box(house: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    require(house, "code-interpreter-v1")
    place = tmp_path_factory.mktemp("languages")  # a lock is written there
    build(house, shutil.copytree(EXAMPLE, place, dirs_exist_ok=True))
    try:
        with Sandbox.create("languages", timeout=900, envs={"WHO": "me"}) as sandbox:
            yield sandbox
    finally:
        wardian(house, "rm", "languages")


def test_java(box: Sandbox) -> None:
    assert box.run_code("1+1", language="java").text == "2"
    code = (
        "record Point(int x, int y) {}\n"
        "var p = new Point(1, 2);\n"
        'System.out.println(System.getenv("WHO"));\n'
        "p"
    )
    execution = box.run_code(code, language="java")
    assert (execution.text, execution.logs.stdout) == ("Point[x=1, y=2]", ["me\n"])
    assert box.run_code('System.getenv("WHO")', language="java", envs={"WHO": "you"}).text == "you"
    assert box.run_code('System.getenv("WHO")', language="java").text == "me"
    error = box.run_code("int n = 1 / (p.x() - 1);", language="java").error
    assert error is not None
    assert (error.name, error.value) == ("java.lang.ArithmeticException", "/ by zero")
    error = box.run_code("undefined + 1", language="java").error
    assert error is not None
    assert error.name == "CompilationError"
    context = box.create_code_context(language="java", cwd="/tmp")
    assert box.run_code('System.getProperty("user.dir")', context=context).text == "/tmp"
    box.remove_code_context(context)


def test_r(box: Sandbox) -> None:
    (value,) = box.run_code("1+1", language="r").results
    assert (value.text, value.is_main_result) == ("[1] 2", False)  # IRkernel displays its values
    assert "".join(box.run_code('cat(Sys.getenv("WHO"))', language="R").logs.stdout) == "me"
    cat = 'cat(Sys.getenv("WHO"))'
    assert "".join(box.run_code(cat, language="r", envs={"WHO": "you"}).logs.stdout) == "you"
    assert "".join(box.run_code(cat, language="r").logs.stdout) == "me"
    error = box.run_code('stop("no")', language="r").error
    assert error is not None
    assert "no" in error.value
    (plot,) = box.run_code("plot(1:3)", language="r").results
    assert plot.png is not None
    assert base64.b64decode(plot.png).startswith(b"\x89PNG\r\n\x1a\n")
