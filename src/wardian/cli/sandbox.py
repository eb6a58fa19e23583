"""``wardian sandbox``: the life of sandboxes, one command per verb."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from wardian.cli import remote
from wardian.cli.arguments import Id, Ids, Seconds, Variables, address, pairs
from wardian.cli.output import EXIT_CODES, Json, errors, note, out, print_json, table
from wardian.cli.remote import Address
from wardian.model.egress import EgressMode
from wardian.model.errors import Invalid, Kind, WardianError

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Create, use, pause, fork and kill sandboxes.\n\nWherever an ID is wanted, its beginning is enough.",
    epilog=EXIT_CODES,
)

FilesOnly = Annotated[
    bool,
    typer.Option("--files-only", help="Keep the files and not the memory: what comes of it is booted anew."),
]


@app.command(epilog=EXIT_CODES)
def create(
    context: typer.Context,
    template: Annotated[str, typer.Argument(help="Template, or snapshot, to start from.")] = "base",
    *,
    timeout: Annotated[int, typer.Option("--timeout", "-t", min=1, help="Seconds it may live.")] = 300,
    env: Variables = [],  # noqa: B006 - typer copies it
    metadata: Annotated[
        list[str],
        typer.Option("--metadata", "-m", metavar="NAME=VALUE", help="Attach a label. May be repeated."),
    ] = [],  # noqa: B006
    pause_at_timeout: Annotated[
        bool, typer.Option("--pause-at-timeout", help="When its time is up, pause it instead of killing it.")
    ] = False,
    auto_resume: Annotated[
        bool, typer.Option("--auto-resume", help="Resume it when someone uses it while it is paused.")
    ] = False,
    internet: Annotated[
        bool, typer.Option("--internet/--no-internet", help="Let it reach the internet.")
    ] = True,
    isolation: Annotated[
        str | None,
        typer.Option(help="auto, microvm or gvisor (default: what the template says, else auto)."),
    ] = None,
    egress: Annotated[
        EgressMode | None,
        typer.Option(
            help="What may leave it: nothing, what is granted, or anything (default: the template's)."
        ),
    ] = None,
    volume: Annotated[
        list[str],
        typer.Option("--volume", "-v", metavar="NAME:PATH", help="Mount a volume. May be repeated."),
    ] = [],  # noqa: B006
    idempotency_key: Annotated[
        str | None, typer.Option(help="The same key gives the same sandbox, however often this is run.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Create a sandbox and print its id."""
    with errors(as_json=as_json):
        body: dict[str, Any] = {
            "templateID": template,
            "timeout": timeout,
            "envVars": pairs(env, "--env"),
            "metadata": pairs(metadata, "--metadata"),
            "allow_internet_access": internet,
        }
        if egress is not None:
            body["network"] = {"egress": egress.value}
        if volume:
            body["volumeMounts"] = [_mount(each) for each in volume]
        if isolation is not None:
            body["isolation"] = isolation
        if pause_at_timeout:
            body["autoPause"] = True
        if auto_resume:
            body["autoResume"] = {"enabled": True}
        made = remote.run(_create(address(context), body, idempotency_key))
        if as_json:
            print_json(made)
            return
        out.print(made["sandboxID"])
        note(f"{template}, {made.get('isolation', 'unknown isolation')}, for {timeout} s")


def _mount(text: str) -> dict[str, str]:
    """``NAME:PATH``, in the protocol's words."""
    name, colon, path = text.partition(":")
    if not colon or not path:
        raise Invalid(f"--volume takes NAME:PATH, not {text!r}")
    return {"name": name, "path": path}


async def _create(server: Address, body: dict[str, Any], key: str | None) -> dict[str, Any]:
    async with remote.connect(server) as there:
        headers = {"Idempotency-Key": key} if key else {}
        made: dict[str, Any] = (await there.call("POST", "/v2/sandboxes", body=body, headers=headers)).json()
        return made


@app.command("ls", epilog=EXIT_CODES)
def list_(
    context: typer.Context,
    *,
    state: Annotated[str, typer.Option(help="running, paused, or both with a comma.")] = "running,paused",
    metadata: Annotated[
        list[str],
        typer.Option("--metadata", "-m", metavar="NAME=VALUE", help="Only with this label. May be repeated."),
    ] = [],  # noqa: B006
    template: Annotated[str | None, typer.Option(help="Only of this template.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print ids only.")] = False,
    as_json: Json = False,
) -> None:
    """List your sandboxes, newest first."""
    with errors(as_json=as_json):
        query = {
            "state": state,
            "template": template,
            "metadata": remote.metadata_query(pairs(metadata, "--metadata")),
        }
        found = remote.run(_list(address(context), query))
        if as_json:
            print_json(found)
        elif quiet:
            for item in found:
                out.print(item["sandboxID"])
        elif found:
            columns = ("ID", "STATE", "TEMPLATE", "BUILD", "FILES", "AGE", "LEFT", "METADATA")
            table(columns, [_row(item) for item in found])
        else:
            note("no sandboxes; `wardian sandbox create` makes one")


async def _list(server: Address, query: dict[str, Any]) -> list[dict[str, Any]]:
    async with remote.connect(server) as there:
        return [item async for item in there.list(**query)]


def _row(item: dict[str, Any]) -> tuple[str, ...]:
    labels = " ".join(f"{name}={value}" for name, value in sorted((item.get("metadata") or {}).items()))
    left = (
        "-"
        if item["state"] == "paused"
        else span((moment(item["endAt"]) - datetime.now(UTC)).total_seconds())
    )
    age = span((datetime.now(UTC) - moment(item["startedAt"])).total_seconds())
    template = item.get("alias") or item["templateID"]
    build, files = item.get("templateBuildID", "-"), item.get("templateDigest", "-")
    if out.is_terminal:  # their beginnings, as `inspect` shows all of them
        build, files = build[:7], files.removeprefix("sha256:")[:7]
    return item["sandboxID"], item["state"], template, build, files, age, left, labels


@app.command(epilog=EXIT_CODES)
def inspect(context: typer.Context, sandbox: Id, *, as_json: Json = False) -> None:
    """Show everything known about a sandbox: its template's build, the digest of its files, its times."""
    with errors(as_json=as_json):
        found = remote.run(_get(address(context), sandbox))
        found.pop("envdAccessToken", None)
        if as_json:
            print_json(found)
            return
        width = max(len(name) for name in found)
        for name, value in sorted(found.items()):
            shown = value if isinstance(value, str) else json.dumps(value)
            out.print(f"{name:{width}}  {shown}", markup=False, soft_wrap=True)


async def _get(server: Address, name: str) -> dict[str, Any]:
    async with remote.connect(server) as there:
        return await there.sandbox(name)


@app.command(epilog=EXIT_CODES)
def pause(
    context: typer.Context, sandboxes: Ids, *, files_only: FilesOnly = False, as_json: Json = False
) -> None:
    """Pause sandboxes: memory, processes and files are kept on disk, and nothing else."""
    _each(context, sandboxes, "POST", "/pause", {"memory": not files_only}, as_json=as_json)


@app.command(epilog=EXIT_CODES)
def snapshot(
    context: typer.Context,
    sandbox: Id,
    *,
    name: Annotated[
        str | None, typer.Option("--name", "-n", help="[namespace/]name[:tag] to call it.")
    ] = None,
    files_only: FilesOnly = False,
    as_json: Json = False,
) -> None:
    """Keep a sandbox as it is now, and print what to create others from. The sandbox goes on.

    `template rm` deletes a snapshot.
    """
    with errors(as_json=as_json):
        body = {"memory": not files_only} | ({} if name is None else {"name": name})
        kept = remote.run(_snapshot(address(context), sandbox, body))
        if as_json:
            print_json(kept)
        else:
            out.print(kept["snapshotID"], soft_wrap=True)


async def _snapshot(server: Address, name: str, body: dict[str, Any]) -> dict[str, Any]:
    async with remote.connect(server) as there:
        known = await there.sandbox(name)
        answer = await there.call("POST", f"/sandboxes/{known['sandboxID']}/snapshots", body=body)
        kept: dict[str, Any] = answer.json()
        return kept


@app.command(epilog=EXIT_CODES)
def resume(context: typer.Context, sandbox: Id, *, timeout: Seconds = None, as_json: Json = False) -> None:
    """Resume a paused sandbox exactly where it was (or give a running one more time)."""
    with errors(as_json=as_json):
        found = remote.run(_resume(address(context), sandbox, timeout or 300))
        if as_json:
            print_json(found)
        else:
            out.print(found["sandboxID"])


async def _resume(server: Address, name: str, timeout_s: int) -> dict[str, Any]:
    async with remote.connect(server) as there:
        known = await there.sandbox(name)
        path = f"/v2/sandboxes/{known['sandboxID']}/connect"
        found: dict[str, Any] = (await there.call("POST", path, body={"timeout": timeout_s})).json()
        return found


@app.command(epilog=EXIT_CODES)
def fork(
    context: typer.Context,
    sandbox: Id,
    *,
    count: Annotated[int, typer.Option("--count", "-c", min=1, max=100, help="How many copies.")] = 1,
    timeout: Seconds = None,
    speculative: Annotated[
        bool,
        typer.Option(
            "--speculative",
            help="Hold what the copies would change outside through the bridge until `promote`.",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Copy a running sandbox, processes and all, and print the ids of the copies. The original goes on."""
    with errors(as_json=as_json):
        asked = {"count": count, "timeout": timeout or 300, "speculative": speculative}
        answers = remote.run(_fork(address(context), sandbox, asked))
        failed = [item["error"] for item in answers if item.get("error")]
        if as_json:
            print_json(answers)
        else:
            for item in answers:
                if item.get("sandbox"):
                    out.print(item["sandbox"]["sandboxID"])
        if failed:
            raise WardianError(
                f"{len(failed)} of {count} forks failed: {failed[0].get('message')}", code="fork_failed"
            )


@app.command(epilog=EXIT_CODES)
def promote(context: typer.Context, sandbox: Id, *, as_json: Json = False) -> None:
    """Let a speculative copy do outside what it held back, once its programs ask for it again."""
    with errors(as_json=as_json):
        told = remote.run(_promote(address(context), sandbox))
        if as_json:
            print_json(told)
        else:
            note(f"{told['sandboxID']}: promoted; {told['held']} of its effects wait to be asked for again")


async def _promote(server: Address, name: str) -> dict[str, Any]:
    async with remote.connect(server) as there:
        known = await there.sandbox(name)
        answer = await there.call("POST", f"/wardian/sandboxes/{known['sandboxID']}/promote")
        told: dict[str, Any] = answer.json()
        return told


async def _fork(server: Address, name: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    async with remote.connect(server) as there:
        known = await there.sandbox(name)
        answer = await there.call("POST", f"/sandboxes/{known['sandboxID']}/fork", body=body)
        found: list[dict[str, Any]] = answer.json()
        return found


@app.command(epilog=EXIT_CODES)
def kill(
    context: typer.Context,
    sandboxes: Annotated[list[str], typer.Argument(metavar="[ID]...", help="The sandboxes to kill.")] = [],  # noqa: B006
    *,
    everything: Annotated[
        bool, typer.Option("--all", help="Kill all of your sandboxes, paused ones too.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Kill sandboxes: what was in them is gone."""
    with errors(as_json=as_json):
        if everything == bool(sandboxes):
            raise Invalid("name the sandboxes to kill, or give --all")
        if everything:
            found = remote.run(_list(address(context), {"state": "running,paused"}))
            sandboxes = [item["sandboxID"] for item in found]
    _each(context, sandboxes, "DELETE", "", as_json=as_json)


def _each(
    context: typer.Context,
    names: Sequence[str],
    method: str,
    path: str,
    body: dict[str, Any] | None = None,
    *,
    as_json: bool,
) -> None:
    """The same request for several sandboxes: all are tried, the first error decides how it ends."""
    with errors(as_json=as_json):
        done, failures = remote.run(_request_each(address(context), names, method, path, body))
        if as_json:
            print_json(done)
        else:
            for sandbox_id in done:
                out.print(sandbox_id)
        if failures:
            for failure in failures[1:]:
                note(f"also: {failure.message}")
            raise failures[0]


async def _request_each(
    server: Address, names: Sequence[str], method: str, path: str, body: dict[str, Any] | None
) -> tuple[list[str], list[WardianError]]:
    done: list[str] = []
    failures: list[WardianError] = []
    async with remote.connect(server) as there:
        for name in names:
            try:
                sandbox_id = (await there.sandbox(name))["sandboxID"]
                await there.call(method, f"/sandboxes/{sandbox_id}{path}", body=body)
                done.append(sandbox_id)
            except WardianError as error:
                failures.append(error)
                if error.kind in (Kind.UNAVAILABLE, Kind.UNAUTHENTICATED):
                    break
    return done, failures


@app.command(epilog=EXIT_CODES)
def logs(
    context: typer.Context,
    sandbox: Annotated[
        str, typer.Argument(metavar="ID", help="The sandbox; one that has ended is fine too.")
    ],
    *,
    limit: Annotated[
        int, typer.Option("--limit", "-l", min=1, max=1000, help="At most so many of the latest.")
    ] = 200,
    level: Annotated[str, typer.Option(help="At least this level: debug, info, warn, error.")] = "debug",
    as_json: Json = False,
) -> None:
    """Show what happened to a sandbox, oldest first. Times are UTC."""
    with errors(as_json=as_json):
        found = remote.run(_logs(address(context), sandbox, limit, level))
        if as_json:
            print_json(found)
            return
        for entry in found:
            at = entry["timestamp"][:23].replace("T", " ")
            out.print(f"{at}  {entry['level']:5}  {entry['message']}", markup=False, soft_wrap=True)


async def _logs(server: Address, name: str, limit: int, level: str) -> list[dict[str, Any]]:
    async with remote.connect(server) as there:
        try:
            sandbox_id = (await there.sandbox(name))["sandboxID"]
        except WardianError as error:
            if error.kind is not Kind.NOT_FOUND:
                raise
            sandbox_id = name  # it may have ended; its log is still there
        query = {"limit": limit, "level": level, "direction": "backward"}
        answer = await there.call("GET", f"/v2/sandboxes/{sandbox_id}/logs", query=query)
        latest: list[dict[str, Any]] = answer.json()["logs"]
        return latest[::-1]


def moment(text: str) -> datetime:
    """A time as the API writes it."""
    return datetime.fromisoformat(text.replace("Z", "+00:00"))


def span(seconds: float) -> str:
    """A length of time in the one unit that fits it."""
    if seconds <= 0:
        return "0 s"
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"
