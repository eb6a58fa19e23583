"""A run, as the program in it sees it. Whoever speaks is known from the link; the token says it may.

Every call may be made again: it has a key, and is then answered as it was. That is what a program relies on
whose machine was captured, or restored, in the middle of one.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, Any, cast

from fastapi import Depends, FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from wardian.api.e2b.body import Body
from wardian.api.e2b.front import refuse, replay, whole_body
from wardian.api.refusals import answer_errors
from wardian.model.agent import checkpoint_of
from wardian.model.errors import Forbidden, Invalid, NotFound, Unauthenticated, Unsupported, WardianError
from wardian.model.run import Run, StepState, Trigger, Wait
from wardian.model.sandbox import Sandbox
from wardian.runs.commits import Commits, check_value
from wardian.runs.door import SANDBOX
from wardian.runs.files import RunFiles
from wardian.runs.service import Runs
from wardian.runs.waits import check_topic

BODY_MAX = 1 << 20
_DONE = {"state": "done"}  # an answer is never empty: to a shell that is none
SLEEP_S_MAX = 30 * 24 * 3600
Admit = Callable[[str, Sandbox], str]
"""Whether a token may speak for a sandbox: ``ok``, or a slug that says why not."""


class StepBegun(Body):
    key: str
    input: Any = None


class StepDone(Body):
    key: str
    result: Any = None
    checkpoint: str | None = None


class StepFailed(Body):
    key: str
    error: str = ""


class Sleep(Body):
    key: str
    seconds: float


class Ask(Body):
    key: str
    question: Any


class Spawn(Body):
    key: str
    agent: str
    input: Any = None


class WaitFor(Body):
    key: str
    run: str


class Telling(Body):
    key: str
    run: str
    topic: str = ""
    body: Any = None


class Receiving(Body):
    key: str
    topic: str | None = None
    seconds: float | None = None


class HandOver(Body):
    name: str
    path: str


class Emit(Body):
    type: str
    data: Any = None


class Result(Body):
    result: Any


Speaking = tuple[Run, Sandbox | None]
"""The run that is spoken for, and its machine; a workflow has none."""


async def _speaker(request: Request) -> Speaking:
    who = cast(Callable[[Request], Awaitable[Speaking]], request.app.state.who)
    return await who(request)


Speaker = Annotated[Speaking, Depends(_speaker)]


def build_inside(runs: Runs, commits: Commits, files: RunFiles, admit: Admit) -> ASGIApp:
    """The application for programs in sandboxes; a scope says under ``SANDBOX`` who is speaking."""

    async def who(request: Request) -> Speaking:
        sandbox = cast(Sandbox | None, request.scope.get(SANDBOX))
        if sandbox is None or sandbox.spec.run_inside is None:
            raise Forbidden("this sandbox is not the machine of a run", code="not_a_run")
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        verdict = admit(token if scheme.lower() == "bearer" else "", sandbox)
        if verdict != "ok":
            raise Unauthenticated(
                f"not admitted: {verdict.replace('_', ' ')}",
                code=verdict,
                hint="show the token in /run/wardian/token as Bearer; there is another one after a restore",
            )
        return await runs.get(sandbox.tenant, sandbox.spec.run_inside), sandbox

    return _bounded(build_speaking(runs, commits, who, files))


def build_speaking(
    runs: Runs,
    commits: Commits,
    who: Callable[[Request], Awaitable[Speaking]],
    files: RunFiles | None = None,
) -> FastAPI:
    """What a program may say for its run, wherever it runs; ``who`` knows for which it speaks. ``files``: of
    machines, which a program elsewhere has not."""
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False)
    answer_errors(app)
    app.state.who = who

    @app.get("/run")
    async def facts(who: Speaker) -> Any:
        run, _ = who
        return {
            "run": run.id,
            "agent": run.agent,
            "version": run.version,
            "input": run.input,
            "trigger": run.trigger.kind,
            "epoch": run.epoch,
            "parent": run.parent_id,
            "root": run.root_id,
            "deadline": run.deadline_at / 1e6,
        }

    @app.post("/steps")
    async def begin(who: Speaker, body: StepBegun) -> Any:
        step = await commits.begin(*who, body.key, body.input)
        done = step.state is StepState.DONE
        return {"state": "done" if done else "begun", "result": step.result, "attempt": step.attempts}

    @app.post("/steps/commit")
    async def commit(who: Speaker, body: StepDone) -> Any:
        said = body.checkpoint
        checkpoint = await runs.checkpoint_of(who[0]) if said is None else checkpoint_of(said)
        step = await commits.commit(*who, body.key, body.result, checkpoint)
        if step is None:
            return not_yet("committing")
        return {"state": "done", "number": step.number, "result": step.result}

    @app.post("/steps/fail")
    async def fail(who: Speaker, body: StepFailed) -> Any:
        await commits.fail(*who, body.key, body.error)
        return _DONE

    @app.post("/files")
    async def hand_over(who: Speaker, body: HandOver) -> Any:
        run, sandbox = who
        if files is None or sandbox is None:
            raise Unsupported(
                "files are handed over by programs in a run's machine",
                code="no_machine",
                hint="read it with the sandbox's own API, or put it into a volume",
            )
        file = await files.hand_over(run, sandbox, body.name, body.path)
        if file is None:
            return not_yet("committing")
        return {"state": "done", "file": {"name": file.name, "size": file.size, "digest": file.digest}}

    @app.post("/emit")
    async def emit(who: Speaker, body: Emit) -> Any:
        check_value(body.data)
        runs.emit(who[0], body.type, body.data)
        return _DONE

    @app.post("/result")
    async def result(who: Speaker, body: Result) -> Any:
        check_value(body.result)
        await commits.result(*who, body.result)
        return _DONE

    @app.post("/sleep")
    async def sleep(who: Speaker, body: Sleep) -> Any:
        _check_seconds(body.seconds)
        asked = {"seconds": body.seconds}
        return _told(await runs.waits.wait_for(who[0], body.key, "sleep", asked, body.seconds), "slept")

    @app.post("/ask")
    async def ask(who: Speaker, body: Ask) -> Any:
        check_value(body.question)
        asked = {"question": body.question}
        return _told(await runs.waits.wait_for(who[0], body.key, "ask", asked), "answer")

    @app.post("/spawn")
    async def spawn(who: Speaker, body: Spawn) -> Any:
        run, _ = who
        key = f"{run.id}:{body.key}"
        trigger = Trigger("agent", {"run": run.id, "step": body.key})
        child = await runs.execute(run.tenant, body.agent, body.input, trigger, key=key, parent=run)
        return {"run": child.id}

    @app.post("/wait")
    async def wait(who: Speaker, body: WaitFor) -> Any:
        run, _ = who
        child = await runs.get(run.tenant, body.run)
        if child.parent_id is None or child.parent_id not in (run.id, run.forked_from):
            raise NotFound(f"run '{body.run[:64]}' was not begun by this one", code="run_not_found")
        return _told(await runs.waits.wait_for(run, body.key, "run", {"run": child.id}), "outcome")

    @app.post("/send")
    async def send(who: Speaker, body: Telling) -> Any:
        """To any run of its own tree."""
        run, _ = who
        other = await runs.get(run.tenant, body.run)
        if other.root_id != run.root_id:
            raise NotFound(f"run '{body.run[:64]}' is not of this one's tree", code="run_not_found")
        await runs.waits.send(other, body.key, body.topic, body.body, run)
        return _DONE

    @app.post("/receive")
    async def receive(who: Speaker, body: Receiving) -> Any:
        """The oldest message that it has not asked for yet; null once the seconds are over."""
        if body.topic is not None:
            check_topic(body.topic)
        if body.seconds is not None:
            _check_seconds(body.seconds)
        asked = {"topic": body.topic}
        wait = await runs.waits.wait_for(who[0], body.key, "message", asked, body.seconds)
        return _told(wait, "message")

    return app


def _check_seconds(seconds: float) -> None:
    if not 0 <= seconds <= SLEEP_S_MAX:
        raise Invalid(f"seconds must be between 0 and {SLEEP_S_MAX}", code="bad_sleep")


def _told(wait: Wait, name: str) -> Response:
    """The answer, or that there is none yet: whoever asks again later gets it then. No call is held open, as
    the machine rests meanwhile."""
    if wait.answered_at is None:
        return not_yet("waiting")
    return JSONResponse({"state": "done", name: wait.answer})


def not_yet(state: str) -> Response:
    """Whoever asks again gets an answer some time."""
    return JSONResponse({"state": state}, 202, headers={"Retry-After": "1"})


def _bounded(app: ASGIApp) -> ASGIApp:
    """Bodies of hostile programs are read up to a size."""

    async def bounded(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            body = await whole_body(scope, receive, BODY_MAX)
        except WardianError as error:
            await refuse(send, error)
            return
        if body is not None:
            await app(scope, replay(body, receive), send)

    return bounded


__all__ = ["Speaker", "Speaking", "build_inside", "build_speaking", "not_yet"]
