"""``wardian run``: begin runs of agents, watch them, answer them, end them."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import typer
from rich.tree import Tree

from wardian.cli import remote
from wardian.cli.arguments import address, value_of
from wardian.cli.output import EXIT_CODES, ExitCode, Json, errors, note, out, print_json, table, when
from wardian.cli.remote import Address
from wardian.model.errors import Invalid, Unavailable

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Runs: executions of agents that survive whatever dies under them.",
)

Id = Annotated[str, typer.Argument(metavar="RUN", help="The run's id.")]
ENDED = ("succeeded", "failed", "cancelled")
LOOK_S = 0.25


@app.command(epilog=EXIT_CODES)
def start(
    context: typer.Context,
    agent: Annotated[str, typer.Argument(help="The agent's name, or its id.")],
    *,
    given: Annotated[
        str | None, typer.Option("--input", "-i", help="What it gets: JSON; what is not JSON is text.")
    ] = None,
    key: Annotated[str | None, typer.Option(help="An idempotency key: the same one is the same run.")] = None,
    version: Annotated[
        int | None, typer.Option(help="A version of the agent, if not its present one.")
    ] = None,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Print the id and do not wait.")] = False,
    as_json: Json = False,
) -> None:
    """Begin a run, tell what it says, and print its result. Ends with 1 if the run does not succeed."""
    with errors(as_json=as_json):
        server = address(context)
        body = {"agent": agent, "input": value_of(given), "version": version}
        told = remote.run(_post(server, "/wardian/runs", body, key))
        if detach:
            print_json(told) if as_json else out.print(told["runID"])
            return
        note(f"run {told['runID']}: Ctrl-C leaves it running")
        _show_end(remote.run(_follow(server, told["runID"], quiet=as_json)), as_json=as_json)


@app.command(epilog=EXIT_CODES)
def wait(context: typer.Context, run: Id, *, as_json: Json = False) -> None:
    """Wait for a run's end and print its result. Ends with 1 if it did not succeed."""
    with errors(as_json=as_json):
        _show_end(remote.run(_follow(address(context), run, quiet=as_json)), as_json=as_json)


@app.command("ls", epilog=EXIT_CODES)
def list_(
    context: typer.Context,
    *,
    agent: Annotated[str | None, typer.Option(help="Only runs of this agent.")] = None,
    limit: Annotated[int, typer.Option(help="How many at most.")] = 50,
    as_json: Json = False,
) -> None:
    """List runs, the newest first."""
    with errors(as_json=as_json):
        query = {"agent": agent, "limit": limit}
        found = remote.run(remote.ask(address(context), "GET", "/wardian/runs", query=query))
        if as_json:
            print_json(found)
            return
        rows = [
            (
                each["runID"],
                f"{each['agent']}:{each['version']}",
                each["state"],
                each["trigger"]["kind"],
                str(each["committed"]),
                when(each["createdAt"]),
                "" if each["failure"] is None else each["failure"]["code"],
            )
            for each in found
        ]
        table(("RUN", "AGENT", "STATE", "BY", "STEPS", "BEGUN", "FAILURE"), rows)


@app.command(epilog=EXIT_CODES)
def inspect(context: typer.Context, run: Id, *, as_json: Json = False) -> None:
    """Show a run, its steps, and what it waits for."""
    with errors(as_json=as_json):
        told = remote.run(remote.ask(address(context), "GET", _path(run)))
        if as_json:
            print_json(told)
            return
        out.print(f"{told['agent']}:{told['version']}  {told['state']}", soft_wrap=True)
        note(f"machine {told['sandboxID'] or 'none'}, the {told['epoch']}. of this run")
        if told["runner"] is not None and told["runner"]["release"] is not None:
            note("runner {name} {version}, release {release:.16}".format(**told["runner"]))
        if told["forkedFrom"] is not None:
            note(f"forked from {told['forkedFrom']}")
        table(
            ("COMMIT", "STEP", "STATE", "TRIES", "MACHINE KEPT", "RESULT"),
            [
                (
                    str(each["number"] or ""),
                    each["key"],
                    each["state"],
                    str(each["attempts"]),
                    "yes" if each["snapshotID"] else "no",
                    json.dumps(each["result"])[:60],
                )
                for each in told["steps"]
            ],
        )
        for each in told["waits"]:
            asked = each.get("question") or each.get("run") or each.get("topic") or f"{each.get('seconds')} s"
            note(f"waits for {each['kind']} ({each['key']}): {asked}")
        if told["failure"] is not None:
            note(f"{told['failure']['code']}: {told['failure']['message']}")


@app.command(epilog=EXIT_CODES)
def logs(context: typer.Context, run: Id, *, as_json: Json = False) -> None:
    """Show what happened to a run, recorded outside of it."""
    with errors(as_json=as_json):
        events = remote.run(remote.ask(address(context), "GET", f"{_path(run)}/events"))
        if as_json:
            print_json(events)
            return
        for event in events:
            _tell(event)


@app.command(epilog=EXIT_CODES)
def files(
    context: typer.Context,
    run: Id,
    *,
    to: Annotated[Path | None, typer.Option(help="Copy them into this directory.")] = None,
    as_json: Json = False,
) -> None:
    """List the files that a run handed over, or fetch them."""
    with errors(as_json=as_json):
        found = remote.run(_files(address(context), run, to))
        if as_json:
            print_json(found)
            return
        rows = [(each["name"], str(each["size"]), each["digest"]) for each in found]
        table(("NAME", "BYTES", "DIGEST"), rows)


@app.command(epilog=EXIT_CODES)
def answer(
    context: typer.Context,
    run: Id,
    text: Annotated[str, typer.Argument(metavar="ANSWER", help="JSON; what is not JSON is text.")],
    *,
    key: Annotated[str | None, typer.Option(help="Which question, if there are several.")] = None,
    as_json: Json = False,
) -> None:
    """Answer what a run asks. It goes on."""
    with errors(as_json=as_json):
        remote.run(_answer(address(context), run, key, value_of(text)))
        if as_json:
            print_json({"runID": run, "answered": True})


@app.command(epilog=EXIT_CODES)
def cancel(context: typer.Context, run: Id, *, as_json: Json = False) -> None:
    """End a run, and the runs that it began."""
    _verb(context, run, "cancel", as_json=as_json)


@app.command(epilog=EXIT_CODES)
def pause(context: typer.Context, run: Id, *, as_json: Json = False) -> None:
    """Put a run's machine to rest as it is, whatever it does, until you resume it."""
    _verb(context, run, "pause", as_json=as_json)


@app.command(epilog=EXIT_CODES)
def resume(context: typer.Context, run: Id, *, as_json: Json = False) -> None:
    """Let a run that was paused go on where it was."""
    _verb(context, run, "resume", as_json=as_json)


@app.command(epilog=EXIT_CODES)
def retry(context: typer.Context, run: Id, *, as_json: Json = False) -> None:
    """Go on with a run that failed or was cancelled, from its last committed step."""
    _verb(context, run, "retry", as_json=as_json)


@app.command(epilog=EXIT_CODES)
def rewind(
    context: typer.Context,
    run: Id,
    commit: Annotated[int, typer.Option("--to", min=0, help="The commit to go back to; 0 is the beginning.")],
    *,
    as_json: Json = False,
) -> None:
    """Go on with a run that is over from an earlier commit. What came later is forgotten, but for what it did
    outside."""
    _verb(context, run, "rewind", {"commit": commit}, as_json=as_json)


@app.command(epilog=EXIT_CODES)
def fork(
    context: typer.Context,
    run: Id,
    *,
    commit: Annotated[
        int | None, typer.Option("--at", min=0, help="The commit to begin with, if not the last one.")
    ] = None,
    given: Annotated[
        str | None, typer.Option("--input", "-i", help="Another input, from the beginning (--at 0).")
    ] = None,
    as_json: Json = False,
) -> None:
    """Begin another run that is what this one was at a commit: memory, processes, files."""
    body: dict[str, Any] = {} if commit is None else {"commit": commit}
    if given is not None:
        body |= {"commit": 0 if commit is None else commit, "input": value_of(given)}
    _verb(context, run, "fork", body, as_json=as_json)


@app.command(epilog=EXIT_CODES)
def send(
    context: typer.Context,
    run: Id,
    text: Annotated[str, typer.Argument(metavar="MESSAGE", help="JSON; what is not JSON is text.")],
    *,
    topic: Annotated[str, typer.Option(help="What it is about.")] = "",
    key: Annotated[
        str | None, typer.Option(help="An idempotency key: with the same one it is told once.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Tell a run something; it has it when it asks for it."""
    with errors(as_json=as_json):
        body = {"topic": topic, "body": value_of(text)}
        told = remote.run(_post(address(context), f"{_path(run)}/messages", body, key))
        print_json(told) if as_json else note(f"message {told['number']}")


@app.command(epilog=EXIT_CODES)
def tree(context: typer.Context, run: Id, *, as_json: Json = False) -> None:
    """Draw the runs that came of one, and where each is."""
    with errors(as_json=as_json):
        found = remote.run(remote.ask(address(context), "GET", f"{_path(run)}/tree"))
        print_json(found) if as_json else out.print(_drawn(found, run))


def _drawn(found: Sequence[Any], marked: str) -> Tree:
    branches: dict[str | None, Tree] = {}
    for each in found:  # whoever began one comes before it
        told = f"{each['runID']}  {each['agent']}:{each['version']}  {each['state']}"
        told = f"{told}  <-" if each["runID"] == marked else told
        above = branches.get(each["parentID"])
        branches[each["runID"]] = Tree(told) if above is None else above.add(told)
    return next(iter(branches.values()))


@app.command("rm", epilog=EXIT_CODES)
def remove(context: typer.Context, run: Id, *, as_json: Json = False) -> None:
    """Remove a run that is over, and all that came of it. What it cost stays on record."""
    with errors(as_json=as_json):
        remote.run(remote.ask(address(context), "DELETE", _path(run)))
        if as_json:
            print_json({"runID": run, "removed": True})


def _verb(context: typer.Context, run: str, verb: str, body: Any = None, *, as_json: bool) -> None:
    with errors(as_json=as_json):
        told = remote.run(remote.ask(address(context), "POST", f"{_path(run)}/{verb}", body))
        if as_json:
            print_json(told)
            return
        note(f"run {told['runID']} is {told['state']}")


async def _post(server: Address, path: str, body: Any, key: str | None) -> Any:
    headers = {} if key is None else {"Idempotency-Key": key}
    async with remote.connect(server) as there:
        return (await there.call("POST", path, body=body, headers=headers)).json()


async def _follow(server: Address, run: str, *, quiet: bool) -> Any:
    """Tell what the run says until it has ended; the run."""
    seen = 0
    async with remote.connect(server) as there:
        while True:
            told = (await there.call("GET", _path(run))).json()
            events = (await there.call("GET", f"{_path(run)}/events", query={"after": seen})).json()
            for event in events:
                seen = event["seq"]
                if not quiet:
                    _tell(event)
            if told["state"] in ENDED:
                return told
            await asyncio.sleep(LOOK_S)


async def _files(server: Address, run: str, to: Path | None) -> Any:
    """What there is, and all of it in ``to``."""
    async with remote.connect(server) as there:
        found = (await there.call("GET", f"{_path(run)}/files")).json()
        for each in found if to is not None else ():
            content = (await there.call("GET", f"{_path(run)}/files/{quote(each['name'], safe='')}")).content
            assert to is not None
            _save(to / Path(each["name"]).name, content, each["digest"])
    return found


def _save(path: Path, content: bytes, digest: str) -> None:
    """Raises :class:`Unavailable` for what arrived changed."""
    if f"sha256:{hashlib.sha256(content).hexdigest()}" != digest:
        raise Unavailable(f"{path.name} is not what the run handed over", code="bad_digest")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


async def _answer(server: Address, run: str, key: str | None, value: Any) -> None:
    async with remote.connect(server) as there:
        if key is None:
            key = _only_question((await there.call("GET", _path(run))).json()["waits"])
        await there.call("POST", f"{_path(run)}/answer", body={"key": key, "answer": value})


def _only_question(waits: Sequence[Any]) -> str:
    asked = [wait["key"] for wait in waits if wait["kind"] == "ask"]
    if len(asked) != 1:
        raise Invalid(
            f"it asks {len(asked)} things", hint=f"give --key: {', '.join(asked)}" if asked else None
        )
    return str(asked[0])


def _show_end(told: Any, *, as_json: bool) -> None:
    if as_json:
        print_json(told)
    elif told["state"] == "succeeded":
        print_json(told["result"])
    else:
        failure = told["failure"] or {"code": told["state"], "message": "somebody ended it"}
        note(f"{told['state']}: {failure['code']}: {failure['message']}")
    if told["state"] != "succeeded":
        raise typer.Exit(ExitCode.FAILED)


def _tell(event: Any) -> None:
    rest = {
        name: value
        for name, value in event.items()
        if name not in ("seq", "at", "type", "prev") and value is not None
    }
    note(f"{when(event['at'])}  {event['type']}  {json.dumps(rest, ensure_ascii=False)}")


def _path(run: str) -> str:
    return f"/wardian/runs/{quote(run, safe='')}"
