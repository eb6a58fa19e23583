"""``wardian agent``: named, versioned apps that runs are of."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import typer

from wardian.cli import remote
from wardian.cli.arguments import Variables, address, pairs, value_of
from wardian.cli.output import EXIT_CODES, Json, errors, note, out, print_json, table
from wardian.model.errors import Invalid

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Agents: named, versioned apps, each an environment that never changes and what is run in it.",
)

Name = Annotated[str, typer.Argument(metavar="AGENT", help="The agent's name, or its id.")]


@app.command(epilog=EXIT_CODES)
def freeze(
    context: typer.Context,
    name: Name,
    *,
    environment: Annotated[
        str, typer.Option("--from", help="A template or a kept snapshot, as it is now and for ever.")
    ] = "base",
    entry: Annotated[str | None, typer.Option(help="What is run in it, by bash.")] = None,
    entry_file: Annotated[
        Path | None, typer.Option("--entry-file", help="A file with that, a script perhaps.")
    ] = None,
    env: Variables = [],  # noqa: B006
    checkpoint: Annotated[
        str, typer.Option(help="always: every step keeps the machine; never: its result only.")
    ] = "always",
    every: Annotated[
        int,
        typer.Option(help="Seconds without a commit after which the machine is kept by itself; 0: never."),
    ] = 60,
    timeout: Annotated[int, typer.Option(help="Seconds a run may take, waits included.")] = 3600,
    attempts: Annotated[int, typer.Option(help="How many machines are made for a run at most.")] = 5,
    as_json: Json = False,
) -> None:
    """Make the next version of an agent. New runs get it; those under way keep theirs."""
    with errors(as_json=as_json):
        if (entry is None) == (entry_file is None):
            raise Invalid("give --entry or --entry-file")
        body = {
            "environment": environment,
            "entry": entry if entry_file is None else _text(entry_file),
            "env": pairs(env, "--env"),
            "checkpoint": checkpoint,
            "every": every,
            "timeout": timeout,
            "attempts": attempts,
        }
        told = remote.run(remote.ask(address(context), "PUT", _path(name), body))
        if as_json:
            print_json(told)
            return
        note(f"{told['name']} is version {told['version']}, of {told['versions'][0]['environment']}")


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
                _when(each["createdAt"]),
                each["entry"].strip().splitlines()[0][:60],
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
        note(f"{told['triggerID']}: next at {_when(told['nextAt'])}")


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
                "" if each.get("nextAt") is None else _when(each["nextAt"]),
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


def _when(at: Any) -> str:
    return datetime.fromtimestamp(at / 1e6).strftime("%Y-%m-%d %H:%M")
