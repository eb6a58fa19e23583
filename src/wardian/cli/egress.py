"""``wardian egress``: what may leave a sandbox and what tried to, and whether the walls hold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from wardian.cli import remote
from wardian.cli.arguments import Id, address
from wardian.cli.output import EXIT_CODES, ExitCode, Json, errors, note, out, print_json, table
from wardian.cli.remote import Address
from wardian.model.errors import Invalid

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="What may leave sandboxes, what tried to, and whether the walls hold.\n\n"
    "`wardian sandbox network` changes what may.",
)
DECISIONS_MAX = 1000


@app.command(epilog=EXIT_CODES)
def show(
    context: typer.Context,
    sandbox: Id,
    *,
    denied: Annotated[bool, typer.Option("--denied", help="Only what was refused.")] = False,
    as_json: Json = False,
) -> None:
    """Show a sandbox's rules, and what they decided of late, with reasons and counts."""
    with errors(as_json=as_json):
        settings, decisions = remote.run(_decisions(address(context), sandbox))
        rows = _counted(decisions, denied=denied)
        if as_json:
            print_json(
                {"network": settings, "decisions": [dict(zip(_FIELDS, row, strict=True)) for row in rows]}
            )
            return
        out.print(f"egress    {_width(settings)}", markup=False)
        for label, name in (("allowed", "allowOut"), ("denied", "denyOut"), ("rules", "egressRules")):
            out.print(f"{label:9} {'; '.join(settings.get(name, ())) or '-'}", markup=False, soft_wrap=True)
        table(tuple(field.upper() for field in _FIELDS), [tuple(map(str, row)) for row in rows])


def _width(settings: dict[str, Any]) -> str:
    return "internet" if settings["allowInternetAccess"] else str(settings.get("egress", "none"))


_FIELDS = ("count", "kind", "where", "name", "outcome", "reason")


def _counted(decisions: Sequence[dict[str, Any]], *, denied: bool) -> list[tuple[Any, ...]]:
    counts: Counter[tuple[str, ...]] = Counter()
    for event in decisions:
        allowed = event.get("allowed") == "true"
        if denied and allowed:
            continue
        where = f"{event['address']}:{event['port']}" if "address" in event else "-"
        kind = str(event["event"]).removeprefix("network.")
        outcome = "allowed" if allowed else "refused"
        counts[kind, where, str(event.get("name", "-")), outcome, str(event.get("reason", "-"))] += 1
    return [(count, *key) for key, count in counts.most_common()]


async def _decisions(server: Address, name: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    async with remote.connect(server) as there:
        found = await there.sandbox(name)
        path = f"/v2/sandboxes/{found['sandboxID']}/logs"
        query = {"limit": DECISIONS_MAX, "direction": "backward", "search": "network."}
        lines = (await there.call("GET", path, query=query)).json()["logs"]
        settings = found["network"] | {"allowInternetAccess": found["allowInternetAccess"]}
        events = [line["fields"] for line in lines]
        return settings, [event for event in events if event["event"].startswith("network.")]


@app.command(epilog=EXIT_CODES)
def check(
    context: typer.Context,
    *,
    own_server: Annotated[
        bool,
        typer.Option("--own-server", help="Start a server for this alone, on which everything can be shown."),
    ] = False,
    isolation: Annotated[
        str | None, typer.Option(help="Check sandboxes of this isolation: microvm or gvisor.")
    ] = None,
    only: Annotated[list[str], typer.Option(help="Only this case; may be repeated.")] = [],  # noqa: B006
    as_json: Json = False,
) -> None:
    """Attack the walls from inside a sandbox; ends with 1 if any gives way, with 7 if not all could be shown.

    Must be run as root on the server's host: the hosts that are attacked are servers of our own there, on
    addresses that nobody has. Nothing leaves the machine, and no internet is needed. A server that was not
    told to let sandboxes reach them (WARDIAN_ALLOWED_NETWORKS=198.51.100.0/24) cannot show that what is
    allowed works; one started with --own-server can.
    """
    from wardian.cli.conformance import check as suite  # late: it brings a name server with it
    from wardian.cli.conformance.attacks import CASES, Outcome, Verdict

    cases = [case for case in CASES if not only or case.name in only]
    unknown = set(only) - {case.name for case in cases}

    def tell(outcome: Outcome) -> None:
        if not as_json:
            note(f"{outcome.verdict:9} {outcome.case.name}: {outcome.case.tried}")

    async def run() -> Sequence[Outcome]:
        if not own_server:
            return await suite.check(address(context), tell, isolation=isolation, cases=cases)
        async with suite.own_server() as server:
            return await suite.check(server, tell, isolation=isolation, cases=cases)

    with errors(as_json=as_json):
        if unknown:
            raise Invalid(f"no such case: {', '.join(sorted(unknown))}", hint="without --only all are listed")
        outcomes = remote.run(run())
        if as_json:
            print_json([_told(outcome) for outcome in outcomes])
        else:
            rows = [
                (
                    outcome.case.name,
                    outcome.case.tried,
                    outcome.case.expected.value,
                    (outcome.seen.splitlines() or ["-"])[-1][:60],
                    outcome.verdict.value,
                )
                for outcome in outcomes
            ]
            table(("CASE", "TRIED", "EXPECTED", "SEEN", "VERDICT"), rows)
            counts = Counter(outcome.verdict for outcome in outcomes)
            note(", ".join(f"{count} {verdict}" for verdict, count in counts.items()))
    if any(outcome.verdict in (Verdict.BREACH, Verdict.BROKEN) for outcome in outcomes):
        raise typer.Exit(ExitCode.FAILED)
    if any(outcome.verdict is Verdict.NOT_SHOWN for outcome in outcomes):
        raise typer.Exit(ExitCode.NOT_SHOWN)


def _told(outcome: Any) -> dict[str, Any]:
    return {
        "case": outcome.case.name,
        "tried": outcome.case.tried,
        "expected": outcome.case.expected.value,
        "seen": outcome.seen,
        "heard": [
            {"address": each.address, "port": each.port, "data": each.data.decode("latin-1")[:200]}
            for each in outcome.heard
        ],
        "leaked": list(outcome.leaked),
        "verdict": outcome.verdict.value,
    }
