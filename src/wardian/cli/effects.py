"""``wardian effects``: what sandboxes did outside, and a human's word where nobody knows."""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import quote

import typer

from wardian.cli import remote
from wardian.cli.arguments import address
from wardian.cli.output import EXIT_CODES, Json, errors, note, out, print_json, table, when

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="The ledger of requests that may have changed something outside.",
)

EffectId = Annotated[str, typer.Argument(metavar="ID", help="The effect's id, as `ls` shows it.")]


@app.command("ls", epilog=EXIT_CODES)
def list_(
    context: typer.Context,
    *,
    in_doubt: Annotated[bool, typer.Option("--in-doubt", help="Only those that wait for somebody.")] = False,
    as_json: Json = False,
) -> None:
    """List effects, the newest first."""
    with errors(as_json=as_json):
        query = {"inDoubt": "true"} if in_doubt else None
        found = remote.run(remote.ask(address(context), "GET", "/wardian/effects", query=query))
        if as_json:
            print_json(found)
            return
        rows = [
            (
                each["effectID"],
                "in doubt" if each["inDoubt"] else each["state"],
                f"{each['method']} {each['url']}",
                str(each["status"] or "-"),
                each["sandboxID"],
                when(each["createdAt"]),
            )
            for each in found
        ]
        table(("ID", "STATE", "REQUEST", "STATUS", "SANDBOX", "AT"), rows)


@app.command(epilog=EXIT_CODES)
def show(context: typer.Context, effect_id: EffectId, *, as_json: Json = False) -> None:
    """Show one effect."""
    with errors(as_json=as_json):
        told = _call(context, "GET", effect_id)
        if as_json:
            print_json(told)
            return
        for name, value in told.items():
            out.print(f"{name}: {value}", markup=False)


@app.command(epilog=EXIT_CODES)
def approve(context: typer.Context, effect_id: EffectId, *, as_json: Json = False) -> None:
    """Let an effect in doubt be sent once more: it did not take effect, or may do so twice."""
    with errors(as_json=as_json):
        _say(_call(context, "POST", effect_id, "/approve"), as_json=as_json)


@app.command(epilog=EXIT_CODES)
def reject(context: typer.Context, effect_id: EffectId, *, as_json: Json = False) -> None:
    """Never send an effect in doubt again."""
    with errors(as_json=as_json):
        _say(_call(context, "POST", effect_id, "/reject"), as_json=as_json)


def _call(context: typer.Context, method: str, effect_id: str, verb: str = "") -> dict[str, Any]:
    path = f"/wardian/effects/{quote(effect_id, safe='')}{verb}"
    told: dict[str, Any] = remote.run(remote.ask(address(context), method, path))
    return told


def _say(told: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(told)
    else:
        note(f"{told['effectID']}: {told['state']}")
