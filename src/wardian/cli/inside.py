"""``wardian sandbox`` exec, shell and cp: what is done inside a sandbox."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from wardian.cli import copy, processes, remote, terminal
from wardian.cli.arguments import Directory, Id, User, Variables, address, pairs
from wardian.cli.envd import Envd
from wardian.cli.output import Json, errors, fail, note, print_json
from wardian.cli.remote import Address, Remote
from wardian.model.errors import Conflict, Invalid, WardianError

WITH_OPTIONS = {"allow_interspersed_args": False, "ignore_unknown_options": True}
"""After the id everything belongs to the command inside, options too."""


def exec_(
    context: typer.Context,
    sandbox: Id,
    command: Annotated[list[str], typer.Argument(metavar="COMMAND [ARG]...", help="Program and arguments.")],
    *,
    user: User = None,
    cwd: Directory = None,
    env: Variables = [],  # noqa: B006
    no_stdin: Annotated[
        bool, typer.Option("--no-stdin", "-n", help="Do not pass standard input on.")
    ] = False,
    tty: Annotated[bool, typer.Option("--tty", help="Give it a terminal, as `shell` does.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print exitCode, stdout and stderr as JSON at the end, as text.")
    ] = False,
) -> None:
    """Run a command in a sandbox and end with its exit code.

    Options come before ID. The arguments are passed as they are; for a shell line, run one:

        wardian sandbox exec ID bash -c 'echo $HOME | wc -c'

    Standard input, output and error are the command's own, byte for byte. Ctrl-C is sent to it; the third one
    kills it.
    """
    argv = command[1:] if command[:1] == ["--"] else command
    size = terminal.size() if tty else None
    wanted = processes.Command(argv, cwd=cwd, env=pairs_or_fail(env), size=size, stdin=not no_stdin)
    _run_inside(context, sandbox, user, wanted, as_json=as_json)


def shell(
    context: typer.Context,
    sandbox: Id,
    *,
    user: User = None,
    cwd: Directory = None,
    env: Variables = [],  # noqa: B006
) -> None:
    """Open a terminal in a sandbox.

    It follows the size of yours and ends with the shell's exit code. If nothing answers any more, type
    Enter ~ . to leave.
    """
    variables = {"TERM": os.environ.get("TERM", "xterm-256color"), "LANG": "C.UTF-8", **pairs_or_fail(env)}
    size = terminal.size() if os.isatty(0) else (80, 24)
    wanted = processes.Command(["/bin/bash", "-i", "-l"], cwd=cwd, env=variables, size=size)
    _run_inside(context, sandbox, user, wanted)


def _run_inside(
    context: typer.Context,
    sandbox: str,
    user: str | None,
    command: processes.Command,
    *,
    as_json: bool = False,
) -> None:
    try:
        if command.size and as_json:
            raise Invalid("a terminal's output is no JSON: leave out --tty or --json")
        status = remote.run(_inside(address(context), sandbox, user, command, as_json=as_json))
    except WardianError as error:
        fail(error, as_json=as_json, code=processes.start_failure(error))
    raise typer.Exit(status)


async def _inside(
    server: Address, name: str, user: str | None, command: processes.Command, *, as_json: bool
) -> int:
    async with remote.connect(server) as there:
        envd = Envd(there, await awake(there, name), user)
        if command.size:
            return await terminal.attach(envd, command)
        if not as_json:
            return await processes.execute(envd, command)
        kept = processes.Kept()
        status = await processes.execute(envd, command, kept.write)
        print_json({"exitCode": status, "stdout": kept.text("stdout"), "stderr": kept.text("stderr")})
        return status


async def awake(there: Remote, name: str) -> dict[str, Any]:
    """A sandbox that can be used now. Raises :class:`Conflict` when it is paused and stays so."""
    found = await there.sandbox(name)
    resumes = (found.get("lifecycle") or {}).get("autoResume")
    if found["state"] == "paused" and not resumes:
        raise Conflict(
            f"sandbox {found['sandboxID']} is paused", hint=f"wardian sandbox resume {found['sandboxID']}"
        )
    return found


def cp(
    context: typer.Context,
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="PATH here, or ID:PATH in a sandbox.")],
    target: Annotated[str, typer.Argument(metavar="TARGET", help="ID:PATH in a sandbox, or PATH here.")],
    *,
    user: User = None,
    as_json: Json = False,
) -> None:
    """Copy a file or a directory into a sandbox or out of it.

    As with `cp -r`, an existing directory as TARGET is copied into. Relative paths in a sandbox start at the
    user's home. Permissions and symlinks are kept; links that lead out of what is copied are left out.
    """
    with errors(as_json=as_json):
        here, there = copy.parse_place(source), copy.parse_place(target)
        if (here.sandbox is None) == (there.sandbox is None):
            raise Invalid("one of SOURCE and TARGET must be in a sandbox (ID:PATH), the other here")
        path = remote.run(_copy(address(context), here, there, user))
        if as_json:
            print_json({"path": path})
        else:
            note(path)


async def _copy(server: Address, source: copy.Place, target: copy.Place, user: str | None) -> str:
    async with remote.connect(server) as there:
        envd = Envd(there, await awake(there, source.sandbox or target.sandbox or ""), user)
        if source.sandbox is None:
            return await copy.upload(envd, Path(source.path), target.path)
        return str(await copy.download(envd, source.path, Path(target.path)))


def pairs_or_fail(given: Sequence[str]) -> dict[str, str]:
    """The same, for commands whose own failures must not look like the command's."""
    with errors(code=processes.OWN_FAILURE):
        return pairs(given, "--env")
