"""``code-interpreter-v1`` through the official SDK: results, charts, frames, errors, contexts, languages."""

from __future__ import annotations

import base64
import json
import os
import threading
import time
from collections.abc import Iterator

import pytest
from e2b import NotFoundException, SandboxException, TimeoutException
from e2b_code_interpreter import Sandbox
from e2b_code_interpreter.charts import (
    BarChart,
    BoxAndWhiskerChart,
    ChartType,
    LineChart,
    PieChart,
    ScatterChart,
    SuperChart,
)
from tests.acceptance.builtin import house, require
from tests.acceptance.conftest import Server
from tests.acceptance.sdks.releases import INTERPRETER, SDKS, run_beside

__all__ = ["house"]  # a fixture

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def box(house: Server) -> Iterator[Sandbox]:
    """The sandbox that tests share."""
    require(house, "code-interpreter-v1")
    with Sandbox.create(timeout=1800, envs={"OF_THE_SANDBOX": "everywhere"}) as sandbox:
        yield sandbox


def test_the_last_expression_is_the_result(box: Sandbox) -> None:
    assert box.run_code("1 + 1").text == "2"
    assert box.run_code("'words'").text == "words"
    assert box.run_code("x = 1").results == []


def test_state_stays_and_executions_are_counted(box: Sandbox) -> None:
    first = box.run_code("kept = 41")
    second = box.run_code("kept + 1")
    assert second.text == "42"
    assert first.execution_count is not None
    assert second.execution_count == first.execution_count + 1


def test_output_comes_while_the_code_runs(box: Sandbox) -> None:
    came: list[tuple[str, bool]] = []
    code = "import sys, time\nprint('one', flush=True)\ntime.sleep(1)\nprint('two', file=sys.stderr)"
    told = threading.Event()

    def hear(message: object) -> None:
        came.append((str(message), bool(message.error)))  # type: ignore[attr-defined]
        told.set()

    running = threading.Thread(
        target=box.run_code, args=(code,), kwargs={"on_stdout": hear, "on_stderr": hear}
    )
    running.start()
    assert told.wait(20)
    assert running.is_alive()  # the first line was heard before the end
    running.join()
    assert came == [("one\n", False), ("two\n", True)]


def test_errors_have_name_value_and_traceback(box: Sandbox) -> None:
    error = box.run_code("1 / 0").error
    assert error is not None
    assert (error.name, error.value) == ("ZeroDivisionError", "division by zero")
    assert "1 / 0" in error.traceback or "ZeroDivisionError" in error.traceback


def test_a_frame_is_html_and_data(box: Sandbox) -> None:
    code = "import pandas as pd\npd.DataFrame({'a': [1, 2], 'when': pd.to_datetime(['2026-01-01', None])})"
    result = box.run_code(code).results[0]
    assert result.data == {"a": [1, 2], "when": ["2026-01-01T00:00:00", None]}
    assert result.html is not None
    assert "<table" in result.html
    assert result.text is not None


def plot(box: Sandbox, code: str) -> object:
    execution = box.run_code(f"import matplotlib.pyplot as plt\n{code}\nplt.show()")
    assert execution.error is None, execution.error
    (result,) = execution.results
    assert result.png is not None
    assert base64.b64decode(result.png).startswith(PNG)
    return result.chart


def test_charts(box: Sandbox) -> None:
    line = plot(box, "plt.plot([1, 2, 3], [1, 4, 9], label='squares'); plt.title('T'); plt.xlabel('x (s)')")
    assert isinstance(line, LineChart)
    assert (line.title, line.x_label, line.x_unit) == ("T", "x (s)", "s")
    assert line.elements[0].label == "squares"
    assert line.elements[0].points == [(1, 1), (2, 4), (3, 9)]
    assert isinstance(plot(box, "plt.scatter([1, 2], [3, 4])"), ScatterChart)
    bar = plot(box, "plt.bar(['a', 'b'], [3, 5])")
    assert isinstance(bar, BarChart)
    assert [(each.label, float(each.value)) for each in bar.elements] == [("a", 3.0), ("b", 5.0)]
    pie = plot(box, "plt.pie([1, 3], labels=['a', 'b'])")
    assert isinstance(pie, PieChart)
    assert [(each.label, round(each.angle)) for each in pie.elements] == [("a", 90), ("b", 270)]
    # Boxes of one height would be taken for horizontal ones by E2B's own extraction, which this is.
    boxes = plot(box, "plt.boxplot([[1, 2, 3, 4, 5], [1, 5, 10, 15, 20]], patch_artist=True)")
    assert isinstance(boxes, BoxAndWhiskerChart)
    assert [each.median for each in boxes.elements] == [3, 10]
    both = plot(box, "_, (a, b) = plt.subplots(1, 2); a.plot([1, 2]); b.bar(['x'], [1])")
    assert isinstance(both, SuperChart)
    assert [each.type for each in both.elements] == [ChartType.LINE, ChartType.BAR]


def test_other_kinds_of_results(box: Sandbox) -> None:
    code = (
        "from IPython.display import *\nfrom PIL import Image\n"
        "display(HTML('<b>'), Markdown('*m*'), Latex('$l$'), SVG('<svg/>'))\n"
        "display(JSON({'k': 1}), Javascript('j()'))\n"
        "display({'x/y': 'z'}, raw=True)\nImage.new('RGB', (2, 2))"
    )
    results = box.run_code(code).results
    html, markdown, latex, svg, data, script, other, image = results
    assert (html.html, markdown.markdown, latex.latex) == ("<b>", "*m*", "$l$")
    assert svg.svg == "<svg/>"
    assert (data.json, script.javascript, other.extra) == ({"k": 1}, "j()", {"x/y": "z"})
    assert image.png is not None
    assert [each.is_main_result for each in results] == [False] * 7 + [True]


def test_contexts_are_apart(box: Sandbox) -> None:
    one, other = box.create_code_context(), box.create_code_context(cwd="/home/user/elsewhere")
    box.run_code("mine = 1", context=one)
    error = box.run_code("mine", context=other).error
    assert error is not None
    assert error.name == "NameError"
    assert box.run_code("import os; os.getcwd()", context=other).text == "/home/user/elsewhere"
    assert {one.id, other.id} <= {each.id for each in box.list_code_contexts()}
    box.restart_code_context(one)
    assert box.run_code("mine", context=one).error is not None
    box.remove_code_context(one)
    with pytest.raises(NotFoundException, match=f"Context {one.id} not found"):
        box.run_code("1", context=one)
    box.remove_code_context(other)


def test_default_contexts_are_there_from_the_start(box: Sandbox) -> None:
    found = {each.language: each.cwd for each in box.list_code_contexts()}
    assert found.items() >= {"python": "/home/user", "javascript": "/home/user"}.items()


def test_javascript(box: Sandbox) -> None:
    assert box.run_code("console.log('Hello')", language="js").logs.stdout == ["Hello\n"]
    assert box.run_code("const f = (a) => a + 1; f(1)", language="js").text == "2"
    assert box.run_code("const f = 5\nf", language="javascript").text == "5"  # declared again
    code = "import { basename } from 'path'\nconst wait = async () => basename('/a/b')\nawait wait()"
    assert box.run_code(code, language="js").text == "b"
    assert box.run_code("basename('/c/d')", language="js").text == "d"
    assert box.run_code("process.cwd()", language="js").text == "/home/user"
    error = box.run_code("throw new TypeError('no')", language="js").error
    assert error is not None
    assert (error.name, error.value) == ("TypeError", "no")


def test_typescript(box: Sandbox) -> None:
    code = "interface P { x: number }\nconst p: P = { x: 3 }\np.x as number"
    assert box.run_code(code, language="ts").text == "3"


def test_bash(box: Sandbox) -> None:
    execution = box.run_code("echo $OF_THE_SANDBOX; x=5; pwd", language="bash")
    assert "".join(execution.logs.stdout) == "everywhere\n/home/user\n"
    assert "".join(box.run_code("echo $x", language="bash").logs.stdout) == "5\n"


def test_a_language_that_is_not_there_says_which_are(box: Sandbox) -> None:
    with pytest.raises(
        SandboxException, match=r"'java' is not available.*python, javascript, typescript, bash"
    ):
        box.run_code("1", language="java")


@pytest.mark.parametrize(
    ("language", "code"),
    [
        ("python", "import os; print(os.environ.get('{0}'))"),
        ("javascript", "console.log(process.env.{0} ?? 'None')"),
        ("bash", "echo ${{{0}:-None}}"),
    ],
)
def test_environment(box: Sandbox, language: str, code: str) -> None:
    def said(name: str, envs: dict[str, str] | None = None) -> str:
        return "".join(box.run_code(code.format(name), language=language, envs=envs).logs.stdout).strip()

    assert said("OF_THE_SANDBOX") == "everywhere"
    assert said("OF_THE_SANDBOX", {"OF_THE_SANDBOX": "here"}) == "here"
    assert said("OF_THE_SANDBOX") == "everywhere"
    assert said("ONCE", {"ONCE": "it's"}) == "it's"
    assert said("ONCE") == "None"


@pytest.mark.parametrize(
    ("language", "forever", "simple"),
    [("python", "import time; time.sleep(60)", "1 + 1"), ("javascript", "while (true);", "1 + 1")],
)
def test_who_gives_up_interrupts(box: Sandbox, language: str, forever: str, simple: str) -> None:
    with pytest.raises(TimeoutException):
        box.run_code(forever, language=language, timeout=2)
    assert box.run_code(simple, language=language, timeout=30).text == "2"


def test_a_kernel_that_dies_is_replaced(box: Sandbox) -> None:
    context = box.create_code_context()
    error = box.run_code("import os; os.kill(os.getpid(), 9)", context=context).error
    assert error is not None
    assert error.name == "KernelDied"
    assert box.run_code("2 + 2", context=context).text == "4"
    box.remove_code_context(context)


def test_executions_in_one_context_take_turns(box: Sandbox) -> None:
    found: list[str | None] = []
    code = "import time; began = time.time(); time.sleep(0.5); f'{began} {time.time()}'"
    threads = [threading.Thread(target=lambda: found.append(box.run_code(code).text)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    first, second = sorted(tuple(map(float, (text or "").split())) for text in found)
    assert first[1] <= second[0]


def test_clones_share_no_randomness(box: Sandbox) -> None:
    python = (
        "import random, numpy, ssl, json\n"
        "print(json.dumps([random.random(), float(numpy.random.rand()), ssl.RAND_bytes(8).hex()]))"
    )
    javascript = "console.log(JSON.stringify([Math.random(), require('crypto').randomUUID()]))"
    drawn: list[list[object]] = []
    for _ in range(2):
        with Sandbox.create(timeout=120) as clone:
            said = [
                json.loads("".join(clone.run_code(code, language=language).logs.stdout))
                for language, code in (("python", python), ("js", javascript))
            ]
            drawn.append([value for values in said for value in values])
    assert all(one != other for one, other in zip(*drawn, strict=True))


def test_the_javascript_sdk(box: Sandbox) -> None:
    run_beside(INTERPRETER, SDKS / "interpreter.mjs", os.environ)


def test_a_new_sandbox_answers_at_once(box: Sandbox) -> None:
    """How fast it is belongs into the benchmarks; here only that nothing is loaded first."""
    with Sandbox.create(timeout=120) as sandbox:
        began = time.monotonic()
        assert sandbox.run_code("1 + 1").text == "2"
        assert time.monotonic() - began < 5  # starting a kernel takes longer than that
