"""``wardian grant``: which sandboxes may have which secret put into which requests."""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import quote

import typer

from wardian.cli import remote
from wardian.cli.arguments import address
from wardian.cli.output import EXIT_CODES, Json, errors, note, print_json, table
from wardian.model.errors import Invalid
from wardian.model.grant import PRESETS

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Let sandboxes use a secret without having it: the bridge puts it into their requests.",
)

PRESET_HOSTS = {
    "openai": ("api.openai.com", "bearer"),
    "anthropic": ("api.anthropic.com", "header:x-api-key"),
}


@app.command(epilog=EXIT_CODES)
def add(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="What to call it; part of the base URL inside.")],
    *,
    secret: Annotated[str, typer.Option("--secret", "-s", help="The secret's name, or its id.")],
    host: Annotated[
        str | None, typer.Option(help="The host that gets it, HOST[:PORT]; '*.' and a domain: all below it.")
    ] = None,
    inject: Annotated[
        str | None,
        typer.Option(
            help="How: bearer, header:NAME[:TEMPLATE], basic[:USER], query:NAME, oauth2, "
            "sigv4[:REGION:SERVICE]."
        ),
    ] = None,
    preset: Annotated[
        str | None, typer.Option(help="openai or anthropic: host, injector and the SDK's variables.")
    ] = None,
    method: Annotated[list[str], typer.Option("--method", help="Only this method. May be repeated.")] = [],  # noqa: B006
    path: Annotated[
        list[str], typer.Option("--path", help="Only this path, * for anything. May be repeated.")
    ] = [],  # noqa: B006
    template: Annotated[str | None, typer.Option(help="Only sandboxes of this template.")] = None,
    agent: Annotated[str | None, typer.Option(help="Only runs of this agent.")] = None,
    sandbox: Annotated[str | None, typer.Option(help="Only this sandbox.")] = None,
    run: Annotated[str | None, typer.Option(help="Only this run.")] = None,
    admission: Annotated[
        str, typer.Option(help="token: programs show the run token; link: coming from the sandbox is enough.")
    ] = "token",
    in_doubt: Annotated[
        str | None,
        typer.Option(
            help="A request that may have taken effect: off, safe, keyed or hold (default: hold; with a "
            "preset safe)."
        ),
    ] = None,
    plain: Annotated[bool, typer.Option("--plain", help="The host speaks HTTP without TLS.")] = False,
    intercept: Annotated[
        bool, typer.Option("--intercept/--no-intercept", help="Also stand in for the host itself.")
    ] = True,
    as_json: Json = False,
) -> None:
    """Grant the use of a secret.

    Inside, `http://bridge.wardian.internal/NAME/...` leads to the host, and so does the host's own name.
    """
    with errors(as_json=as_json):
        preset_host, preset_inject = PRESET_HOSTS.get(preset or "", (None, None))
        if preset is not None and preset not in PRESETS:
            raise Invalid(f"presets are {', '.join(PRESETS)}", code="bad_grant")
        where, way = host or preset_host, inject or preset_inject
        if where is None or way is None:
            raise Invalid("give --host and --inject, or --preset", code="bad_grant")
        name_of_host, _, port = where.partition(":")
        body: dict[str, Any] = {
            "name": name,
            "secret": secret,
            "host": name_of_host,
            "port": int(port) if port.isdecimal() else (80 if plain else 443),
            "tls": not plain,
            "injector": injector(way),
            "methods": [each.upper() for each in method],
            "paths": path or ["/*"],
            "template": template,
            "agent": agent,
            "sandbox": sandbox,
            "run": run,
            "admission": admission,
            "inDoubt": in_doubt or ("safe" if preset else "hold"),
            "preset": preset,
            "intercept": intercept,
        }
        told = remote.run(remote.ask(address(context), "POST", "/wardian/grants", body))
        if as_json:
            print_json(told)
            return
        note(f"{told['name']}: {told['host']} ({told['grantID']})")


@app.command("ls", epilog=EXIT_CODES)
def list_(context: typer.Context, *, as_json: Json = False) -> None:
    """List grants by name."""
    with errors(as_json=as_json):
        found = remote.run(remote.ask(address(context), "GET", "/wardian/grants"))
        if as_json:
            print_json(found)
            return
        rows = [
            (
                each["name"],
                f"{each['host']}:{each['port']}",
                each["injector"]["kind"],
                " ".join(each["methods"]) or "any",
                " ".join(each["paths"]),
                each["sandbox"] or each["template"] or each["agent"] or each["run"] or "all",
            )
            for each in found
        ]
        table(("NAME", "HOST", "INJECTS", "METHODS", "PATHS", "FOR"), rows)


@app.command("rm", epilog=EXIT_CODES)
def remove(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="The grant's name, or its id.")],
    *,
    as_json: Json = False,
) -> None:
    """Withdraw a grant. The next request goes without."""
    with errors(as_json=as_json):
        remote.run(remote.ask(address(context), "DELETE", f"/wardian/grants/{quote(name, safe='')}"))
        if as_json:
            print_json({"name": name, "removed": True})


def injector(text: str) -> dict[str, str]:
    """What ``--inject`` says, as the API wants it."""
    kind, _, rest = text.partition(":")
    first, _, second = rest.partition(":")
    parts: dict[str, dict[str, str]] = {
        "header": {"header": first, "template": second or "{}"},
        "basic": {"user": rest},
        "query": {"query": rest},
        "sigv4": {"region": first, "service": second},
    }
    return {"kind": kind} | {name: value for name, value in parts.get(kind, {}).items() if value}
