"""``wardian budget``: how much may be used through the bridge."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from wardian.cli import remote
from wardian.cli.arguments import address
from wardian.cli.output import EXIT_CODES, Json, errors, print_json, table
from wardian.model.errors import Invalid

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Cap what sandboxes use through the bridge: calls, bytes, a model's tokens, money.",
)

Template = Annotated[str | None, typer.Option(help="For the sandboxes of this template together.")]
Run = Annotated[str | None, typer.Option(help="For this run (until there are runs: a sandbox's id).")]


@app.command("set", epilog=EXIT_CODES)
def set_(
    context: typer.Context,
    *,
    template: Template = None,
    run: Run = None,
    calls: Annotated[int | None, typer.Option(min=0)] = None,
    bytes_: Annotated[int | None, typer.Option("--bytes", min=0)] = None,
    tokens: Annotated[int | None, typer.Option(min=0)] = None,
    micro_usd: Annotated[int | None, typer.Option(min=0, help="Millionths of a dollar.")] = None,
    as_json: Json = False,
) -> None:
    """Set caps; without --template and --run for everything that is yours. What was used so far counts."""
    with errors(as_json=as_json):
        given = {"calls": calls, "bytes": bytes_, "tokens": tokens, "micro_usd": micro_usd}
        chosen = {unit: most for unit, most in given.items() if most is not None}
        if not chosen:
            raise Invalid("say how much: --calls, --bytes, --tokens or --micro-usd", code="bad_budget")
        for unit, most in chosen.items():
            body = {**_place(template, run), "unit": unit, "most": most}
            remote.run(remote.ask(address(context), "PUT", "/wardian/budgets", body))
        if as_json:
            print_json({**_place(template, run), **chosen})


@app.command("ls", epilog=EXIT_CODES)
def list_(context: typer.Context, *, as_json: Json = False) -> None:
    """List caps and what was used."""
    with errors(as_json=as_json):
        found = remote.run(remote.ask(address(context), "GET", "/wardian/budgets"))
        if as_json:
            print_json(found)
            return
        rows = [
            (each["scope"], each["subject"], each["unit"], str(each["used"]), str(each["most"]))
            for each in found
        ]
        table(("SCOPE", "SUBJECT", "UNIT", "USED", "MOST"), rows)


@app.command("rm", epilog=EXIT_CODES)
def remove(
    context: typer.Context,
    unit: Annotated[str, typer.Argument(help="calls, bytes, tokens or micro_usd.")],
    *,
    template: Template = None,
    run: Run = None,
    as_json: Json = False,
) -> None:
    """Remove a cap."""
    with errors(as_json=as_json):
        query = {**_place(template, run), "unit": unit}
        remote.run(remote.ask(address(context), "DELETE", "/wardian/budgets", query=query))
        if as_json:
            print_json({"removed": True})


@app.command(epilog=EXIT_CODES)
def price(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="A model's name, or how the names of several begin.")],
    tokens_in: Annotated[int, typer.Argument(help="Millionths of a dollar for a million tokens in.", min=0)],
    tokens_out: Annotated[int, typer.Argument(help="The same for tokens out.", min=0)],
    *,
    as_json: Json = False,
) -> None:
    """Say what a model costs, so that caps in money can be kept."""
    with errors(as_json=as_json):
        body = {"model": model, "tokensIn": tokens_in, "tokensOut": tokens_out}
        remote.run(remote.ask(address(context), "PUT", "/wardian/prices", body))
        if as_json:
            print_json(body)


def _place(template: str | None, run: str | None) -> dict[str, Any]:
    if template is not None and run is not None:
        raise Invalid("--template or --run, not both", code="bad_budget")
    if run is not None:
        return {"scope": "run", "subject": run}
    return {"scope": "template", "subject": template} if template is not None else {"scope": "tenant"}
