"""The code interpreter's server, on the host, with kernels that are played."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest

from wardian.builds.builtin.code_interpreter.interpreter import contexts as contexts_module
from wardian.builds.builtin.code_interpreter.interpreter import lines, sandbox
from wardian.builds.builtin.code_interpreter.interpreter.contexts import Contexts
from wardian.builds.builtin.code_interpreter.interpreter.kernels import Kernel, KernelDied, Message
from wardian.builds.builtin.code_interpreter.interpreter.languages import Languages, setting
from wardian.builds.builtin.code_interpreter.interpreter.server import build_app
from wardian.builds.builtin.code_interpreter.interpreter.zygote import Zygote


class Actor:
    """A kernel that says its code back. ``wait`` goes on until it is interrupted; ``die`` ends it."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.interrupted = asyncio.Event()
        self.stopped = False
        self.alive = True

    async def execute(self, code: str, *, silent: bool = False) -> AsyncIterator[Message]:
        self.ran.append(code)
        if silent:
            return
        yield Message("execute_input", {"execution_count": len(self.ran)})
        if code in ("die", "quit"):
            self.alive = False
        if code == "die":
            raise KernelDied
        if code == "wait":
            self.interrupted.clear()
            await self.interrupted.wait()
        yield Message("execute_result", {"data": {"text/plain": repr(code)}})

    def interrupt(self) -> None:
        self.interrupted.set()

    async def stop(self) -> None:
        self.stopped = True


class Cast(Languages):
    """Languages whose kernels are actors."""

    async def start(self, language: str, cwd: str, env: Mapping[str, str]) -> Kernel:
        ACTORS.append(Actor())
        return ACTORS[-1]


ACTORS: list[Actor] = []


@pytest.fixture
async def client(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    ACTORS.clear()
    monkeypatch.setattr(contexts_module, "HOME", str(tmp_path))
    monkeypatch.setattr(contexts_module, "owner", lambda: sandbox.Owner("i1", {"WIDE": "1"}))
    app = build_app(Contexts(Cast(Zygote())))
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://guest") as client,
    ):
        yield client


def told(answer: httpx.Response) -> list[dict[str, Any]]:
    return [json.loads(line) for line in answer.text.splitlines()]


async def test_an_execution_is_told_line_by_line(client: httpx.AsyncClient) -> None:
    answer = await client.post("/execute", json={"code": "x"})
    count, result, end = told(answer)
    assert count["type"] == "number_of_executions"
    assert result == {"type": "result", "is_main_result": True, "text": "x"}
    assert end == {"type": "end_of_execution"}


async def test_a_rehearsal_goes_that_way_and_leaves_no_trace(client: httpx.AsyncClient) -> None:
    before = [len(actor.ran) for actor in ACTORS]
    answer = told(await client.post("/rehearsal", content="{}"))
    assert {line["type"] for line in answer} == {"end_of_execution"}
    assert all(len(actor.ran) > count for actor, count in zip(ACTORS, before, strict=True))
    assert len(ACTORS) == 2  # nobody's kernel was used, so none was replaced


async def test_refusals(client: httpx.AsyncClient) -> None:
    async def refused(body: object) -> tuple[int, str]:
        answer = await client.post("/execute", json=body)
        return answer.status_code, answer.text

    assert await refused({"code": "x", "context_id": "c", "language": "python"}) == (
        400,
        "Only one of context_id or language can be provided",
    )
    assert await refused({"code": "x", "context_id": "c"}) == (404, "Context c not found")
    assert (await refused({"code": 5}))[0] == 400
    assert (await refused({"code": "x", "env_vars": {"A": 1}}))[0] == 400
    assert (await refused([]))[0] == 400
    status, text = await refused({"code": "x", "language": "cobol"})
    assert status == 400
    assert "available: python, javascript, typescript, bash" in text
    assert (await client.delete("/contexts/none")).status_code == 404


async def test_contexts_come_and_go(client: httpx.AsyncClient, tmp_path: Path) -> None:
    made = (await client.post("/contexts", json={"language": "js", "cwd": "work"})).json()
    assert (made["language"], made["cwd"]) == ("javascript", str(tmp_path / "work"))
    assert (tmp_path / "work").is_dir()
    listed = (await client.get("/contexts")).json()
    assert [each["language"] for each in listed] == ["python", "javascript", "javascript"]
    kernel = ACTORS[-1]
    assert (await client.post(f"/contexts/{made['id']}/restart")).json() is None
    assert kernel.stopped
    assert (await client.delete(f"/contexts/{made['id']}")).json() is None
    assert ACTORS[-1].stopped
    assert len((await client.get("/contexts")).json()) == 2


async def test_variables_are_set_for_one_execution(client: httpx.AsyncClient) -> None:
    await client.post("/execute", json={"code": "x", "env_vars": {"WIDE": "2", "ONCE": "3"}})
    before, code, after = ACTORS[0].ran[-3:]
    assert code == "x"
    assert before == setting("python", {"WIDE": "2", "ONCE": "3"})
    assert after == setting("python", {"WIDE": "1", "ONCE": None})


async def test_a_dead_kernel_is_replaced(client: httpx.AsyncClient) -> None:
    answer = told(await client.post("/execute", json={"code": "die"}))
    assert [line["type"] for line in answer] == ["number_of_executions", "error", "end_of_execution"]
    assert answer[1]["name"] == "KernelDied"
    assert ACTORS[0].stopped
    assert told(await client.post("/execute", json={"code": "y"}))[1]["text"] == "y"
    assert ACTORS[-1].ran == ["y"]


async def test_one_that_ended_by_itself_is_replaced(client: httpx.AsyncClient) -> None:
    assert told(await client.post("/execute", json={"code": "quit"}))[1]["text"] == "quit"
    assert told(await client.post("/execute", json={"code": "y"}))[1]["text"] == "y"
    assert ACTORS[-1].ran == ["y"]


async def test_who_goes_away_interrupts_and_the_next_goes_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ACTORS.clear()
    monkeypatch.setattr(contexts_module, "HOME", str(tmp_path))
    contexts = Contexts(Cast(Zygote()))
    await contexts.start()
    context = contexts.list()[0]
    waiting = context.begin("wait", {})
    never = context.begin("never", {})
    assert json.loads(await waiting.next_line() or b"")["type"] == "number_of_executions"
    never.abandon()
    waiting.abandon()
    after = context.begin("after", {})
    while (line := await after.next_line()) is not None:
        last = line
    assert json.loads(last) == lines.END
    assert "wait" in ACTORS[0].ran
    assert "never" not in ACTORS[0].ran
    assert not ACTORS[0].stopped  # it went idle in time


def test_results_by_type() -> None:
    data = {
        "text/plain": '"it\'s"',
        "text/html": "<b>",
        "image/png": "iVBO",
        "e2b/chart": {"type": "line"},
        "x/y": 1,
    }
    line = lines.line_of(Message("display_data", {"data": data}))
    assert line == {
        "type": "result",
        "is_main_result": False,
        "text": "it's",
        "html": "<b>",
        "png": "iVBO",
        "chart": {"type": "line"},
        "extra": {"x/y": 1},
    }
    assert lines.line_of(Message("status", {"execution_state": "busy"})) is None


def test_bash_variables_are_quoted() -> None:
    code = setting("bash", {"A": "it's; rm -rf /", "B": None, "not a name": "x"})
    assert code == """export A='it'"'"'s; rm -rf /'; unset B"""


def test_the_owner_is_read_from_the_machine(tmp_path: Path) -> None:
    assert sandbox.owner(tmp_path) == sandbox.Owner()
    (tmp_path / ".E2B_SANDBOX_ID").write_text("i1\n")
    assert sandbox.owner(tmp_path) == sandbox.Owner("i1")
    (tmp_path / ".WARDIAN_ENV").write_text('{"A": "1"}')
    assert sandbox.owner(tmp_path) == sandbox.Owner("i1", {"A": "1"})
    (tmp_path / ".WARDIAN_ENV").write_text("null")
    with pytest.raises(sandbox.EnvironmentTooLarge):
        sandbox.owner(tmp_path)
