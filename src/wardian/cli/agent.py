"""``wardian agent``: named, versioned apps that runs are of."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated
from urllib.parse import quote

import typer

from wardian.cli import editing, remote
from wardian.cli.arguments import Variables, address, pairs, value_of
from wardian.cli.output import EXIT_CODES, ExitCode, Json, errors, note, out, print_json, table, when
from wardian.model.errors import Invalid

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Agents: named, versioned apps, each an environment that never changes and what is run in it.",
)

Name = Annotated[str, typer.Argument(metavar="AGENT", help="The agent's name, or its id.")]


Budgets = Annotated[
    list[str] | None,
    typer.Option(
        "--budget",
        metavar="UNIT=N",
        help="For a run and all that come of it, through the bridge: calls, bytes, tokens, micro_usd.",
    ),
]


@app.command(epilog=EXIT_CODES)
def freeze(
    context: typer.Context,
    name: Name,
    *,
    environment: Annotated[
        str | None,
        typer.Option("--from", help="A template or a kept snapshot, as it is now and for ever; first: base."),
    ] = None,
    sandbox: Annotated[
        str | None, typer.Option("--from-sandbox", help="A running sandbox, as it is now.")
    ] = None,
    entry: Annotated[str | None, typer.Option(help="What is run in it, by bash.")] = None,
    entry_file: Annotated[
        Path | None, typer.Option("--entry-file", help="A file with that, a script perhaps.")
    ] = None,
    env: Variables = [],  # noqa: B006
    checkpoint: Annotated[
        str | None, typer.Option(help="always (first): every step keeps the machine; never: its result only.")
    ] = None,
    every: Annotated[
        int | None,
        typer.Option(
            help="Seconds without a commit until the machine is kept by itself; 0: never. First: 60."
        ),
    ] = None,
    keep: Annotated[
        int | None, typer.Option(help="Machines of so many commits are kept, to go back to. First: 1.")
    ] = None,
    timeout: Annotated[
        int | None, typer.Option(help="Seconds a run may take, waits included. First: 3600.")
    ] = None,
    attempts: Annotated[
        int | None, typer.Option(help="How many machines are made for a run at most. First: 5.")
    ] = None,
    at_once: Annotated[
        int | None,
        typer.Option("--at-once", help="Of the runs it begins, so many work at a time. First: 20."),
    ] = None,
    tree: Annotated[
        int | None, typer.Option(help="So many runs may come of one, itself included. First: 200.")
    ] = None,
    budget: Budgets = None,
    isolation: Annotated[
        str | None, typer.Option(help="The wall its runs are behind: auto, gvisor or microvm.")
    ] = None,
    egress: Annotated[
        str | None, typer.Option(help="How far out its runs reach at most: none, granted or internet.")
    ] = None,
    host: Annotated[
        list[str] | None, typer.Option("--allow", help="With granted: a host they reach. May be repeated.")
    ] = None,
    runner: Annotated[
        str | None,
        typer.Option(help="A runner, put beside the environment, and run if there is no entry; '': none."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Make the next version of an agent. New runs get it; those under way keep theirs.

    What is not said stays as the present version has it.
    """
    with errors(as_json=as_json):
        if entry is not None and entry_file is not None:
            raise Invalid("give --entry or --entry-file")
        if environment is not None and sandbox is not None:
            raise Invalid("give --from or --from-sandbox")
        body = {
            "environment": environment,
            "entry": entry if entry_file is None else _text(entry_file),
            "env": pairs(env, "--env") if env else None,
            "checkpoint": checkpoint,
            "every": every,
            "keep": keep,
            "timeout": timeout,
            "attempts": attempts,
            "atOnce": at_once,
            "tree": tree,
            "budget": _amounts(budget),
            "isolation": isolation,
            "egress": egress,
            "hosts": host,
            "runner": runner,
        }
        said = {option: value for option, value in body.items() if value is not None}
        told = remote.run(editing.freeze(address(context), name, said, sandbox))
        if as_json:
            print_json(told)
            return
        note(f"{told['name']} is version {told['version']}, of {told['versions'][0]['environment']}")


@app.command(epilog=EXIT_CODES)
def edit(
    context: typer.Context,
    name: Name,
    *,
    command: Annotated[
        str | None, typer.Option("--run", help="Do this, with bash, instead of opening a terminal.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Freeze without asking.")] = False,
) -> None:
    """Open an agent's environment in a terminal; what it is when you leave is the next version's.

    A terminal or a command that ends with anything but 0 freezes nothing. The version before stays as it was.
    """
    with errors():
        server = address(context)
        sandbox = remote.run(editing.begin(server, name))
        frozen = False
        try:
            status = remote.run(editing.work(server, sandbox, command))
            if status != 0:
                note(f"it ended with {status}: nothing was frozen")
            elif yes or command is not None or typer.confirm("Freeze it as the next version?", default=True):
                told = remote.run(editing.freeze(server, name, {}, sandbox))
                note(f"{told['name']} is version {told['version']}, of {told['versions'][0]['environment']}")
                frozen = True
        finally:
            remote.run(remote.ask(server, "DELETE", f"/sandboxes/{sandbox}"))
    if not frozen:
        raise typer.Exit(ExitCode.FAILED)


@app.command("ls", epilog=EXIT_CODES)
def list_(context: typer.Context, *, as_json: Json = False) -> None:
    """List agents by name."""
    with errors(as_json=as_json):
        found = remote.run(remote.ask(address(context), "GET", "/wardian/agents"))
        if as_json:
            print_json(found)
            return
        table(
            ("NAME", "VERSION", "ID"),
            [(each["name"], str(each["version"]), each["agentID"]) for each in found],
        )


@app.command(epilog=EXIT_CODES)
def inspect(context: typer.Context, name: Name, *, as_json: Json = False) -> None:
    """Show an agent's versions, the newest first."""
    with errors(as_json=as_json):
        told = remote.run(remote.ask(address(context), "GET", _path(name)))
        if as_json:
            print_json(told)
            return
        rows = [
            (
                f"{each['version']}{' *' if each['version'] == told['version'] else ''}",
                each["environment"],
                each["checkpoint"],
                when(each["createdAt"]),
                (each["entry"].strip() or f"(runner {each['runner']})").splitlines()[0][:60],
            )
            for each in told["versions"]
        ]
        table(("VERSION", "ENVIRONMENT", "CHECKPOINT", "FROZEN", "ENTRY"), rows)


@app.command(epilog=EXIT_CODES)
def use(
    context: typer.Context,
    name: Name,
    version: Annotated[int, typer.Argument(help="The version that new runs get.")],
    *,
    as_json: Json = False,
) -> None:
    """Let new runs get another version: an older one, to go back."""
    with errors(as_json=as_json):
        told = remote.run(
            remote.ask(address(context), "POST", f"{_path(name)}/version", {"version": version})
        )
        if as_json:
            print_json(told)
            return
        note(f"{told['name']} is version {told['version']}")


@app.command(epilog=EXIT_CODES)
def schedule(
    context: typer.Context,
    name: Name,
    cron: Annotated[str, typer.Argument(help="Minute, hour, day of month, month, day of week.")],
    *,
    timezone: Annotated[str, typer.Option("--tz", help="Whose clock, as in Europe/Berlin.")] = "UTC",
    missed: Annotated[
        str, typer.Option(help="Times at which no server ran: once (one run for the latest), or skip.")
    ] = "once",
    overlap: Annotated[
        str, typer.Option(help="If the run before is under way: allow another one, skip, or queue it.")
    ] = "allow",
    given: Annotated[str | None, typer.Option("--input", "-i", help="What runs get: JSON, or text.")] = None,
    as_json: Json = False,
) -> None:
    """Begin a run at times: `wardian agent schedule report '0 9 * * mon-fri' --tz Europe/Berlin`."""
    with errors(as_json=as_json):
        body = {
            "cron": cron,
            "timezone": timezone,
            "missed": missed,
            "overlap": overlap,
            "input": value_of(given),
        }
        told = remote.run(remote.ask(address(context), "POST", f"{_path(name)}/schedules", body))
        if as_json:
            print_json(told)
            return
        note(f"{told['triggerID']}: next at {when(told['nextAt'])}")


@app.command(epilog=EXIT_CODES)
def webhook(context: typer.Context, name: Name, *, as_json: Json = False) -> None:
    """Begin a run for every signed delivery. The secret is shown once."""
    with errors(as_json=as_json):
        server = address(context)
        told = remote.run(remote.ask(server, "POST", f"{_path(name)}/webhooks"))
        if as_json:
            print_json(told)
            return
        note(f"deliver to {server.url}{told['path']}, signed with:")
        out.print(told["secret"])


@app.command(epilog=EXIT_CODES)
def triggers(
    context: typer.Context,
    *,
    remove: Annotated[str | None, typer.Option("--rm", help="Remove this one.")] = None,
    as_json: Json = False,
) -> None:
    """List what begins runs by itself."""
    with errors(as_json=as_json):
        server = address(context)
        if remove is not None:
            remote.run(remote.ask(server, "DELETE", f"/wardian/triggers/{quote(remove, safe='')}"))
        found = remote.run(remote.ask(server, "GET", "/wardian/triggers"))
        if as_json:
            print_json(found)
            return
        rows = [
            (
                each["triggerID"],
                each["kind"],
                each.get("cron") or each["path"],
                each.get("timezone", ""),
                "" if each.get("nextAt") is None else when(each["nextAt"]),
            )
            for each in found
        ]
        table(("TRIGGER", "KIND", "WHEN", "TIME ZONE", "NEXT"), rows)


@app.command("rm", epilog=EXIT_CODES)
def remove(context: typer.Context, name: Name, *, as_json: Json = False) -> None:
    """Remove an agent. Its runs stay on record."""
    with errors(as_json=as_json):
        remote.run(remote.ask(address(context), "DELETE", _path(name)))
        if as_json:
            print_json({"name": name, "removed": True})


def _path(name: str) -> str:
    return f"/wardian/agents/{quote(name, safe='')}"


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise Invalid(f"{path} cannot be read: {error}") from error


def _amounts(budget: list[str] | None) -> dict[str, int] | None:
    if budget is None:
        return None
    try:
        return {unit: int(most) for unit, most in pairs(budget, "--budget").items()}
    except ValueError:
        raise Invalid("--budget wants UNIT=N, with a whole number", code="bad_budget") from None
