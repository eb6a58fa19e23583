"""``wardian key``: who may ask. Works on the data directory itself, so it needs no server and no key."""

from __future__ import annotations

import re
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from wardian.cli import server_file
from wardian.cli.output import EXIT_CODES, Json, errors, note, out, print_json, table
from wardian.model.egress import EgressGrant, EgressMode
from wardian.model.errors import Invalid
from wardian.model.isolation import minimum_of

TENANT_FORM = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Make, list and revoke API keys. A key belongs to a tenant, and tenants see nothing of each other.",
)

Tenant = Annotated[str, typer.Option("--tenant", "-t", help="Whose key it is.")]
Data = Annotated[
    Path | None,
    typer.Option("--data", help="The server's data directory (WARDIAN_DATA; default: /var/lib/wardian)."),
]


@app.command(epilog=EXIT_CODES)
def create(
    *,
    tenant: Tenant = "default",
    name: Annotated[str, typer.Option("--name", "-n", help="What it is for.")] = "",
    minimum_isolation: Annotated[
        str | None,
        typer.Option(help="The weakest isolation it may be used with: microvm (under KVM) or gvisor."),
    ] = None,
    egress: Annotated[
        EgressMode,
        typer.Option(
            help="The most that may leave its sandboxes: nothing, the hosts of --allow, or anything."
        ),
    ] = EgressMode.INTERNET,
    allow: Annotated[
        list[str],
        typer.Option(
            help="With --egress granted: a domain, '*.' and a domain, an address or a CIDR. Repeat it."
        ),
    ] = [],  # noqa: B006 - typer copies it
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Make a key and print it, this once: only its hash is kept. A tenant that is new is made, too."""
    from wardian.cli import (
        local_keys,  # late, here and below: it brings the store, and other commands want none
    )

    with errors(as_json=as_json):
        if not TENANT_FORM.fullmatch(tenant):
            raise Invalid(
                f"a tenant's name is up to 63 of a-z, 0-9 and '-', not {tenant!r}", code="bad_tenant"
            )
        minimum = None if minimum_isolation is None else minimum_of(minimum_isolation)
        grant = EgressGrant(egress, tuple(allow))
        grant.check()
        key, record = local_keys.make(_directory(data), tenant, name, minimum, grant)
        if as_json:
            print_json({"key": key, **asdict(record)})
            return
        out.print(key)
        note(f"key {record.id} of tenant {tenant}; it is not shown again")


@app.command("ls", epilog=EXIT_CODES)
def list_(*, tenant: Tenant = "default", data: Data = None, as_json: Json = False) -> None:
    """List a tenant's keys, oldest first."""
    from wardian.cli import local_keys

    with errors(as_json=as_json):
        found = local_keys.of_tenant(_directory(data), tenant)
        if as_json:
            print_json([asdict(record) for record in found])
            return
        rows = [
            (
                key.id,
                key.prefix + "…",
                key.name or "-",
                key.minimum_isolation or "-",
                _egress(key.egress),
                _minute(key.created_at),
                _minute(key.revoked_at),
            )
            for key in found
        ]
        table(("ID", "KEY", "NAME", "AT LEAST", "EGRESS", "CREATED", "REVOKED"), rows)


@app.command(epilog=EXIT_CODES)
def revoke(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="The key's id, as `ls` shows it.")],
    *,
    tenant: Tenant = "default",
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Revoke a key. A running server notices within five seconds; sandboxes made with it go on."""
    from wardian.cli import local_keys

    with errors(as_json=as_json):
        local_keys.revoke(_directory(data), tenant, key_id)
        if as_json:
            print_json({"id": key_id, "revoked": True})


def _directory(data: Path | None) -> Path:
    return data or server_file.default_data_dir()


def _egress(grant: EgressGrant) -> str:
    return f"{grant.mode}: {', '.join(grant.hosts)}" if grant.hosts else grant.mode.value


def _minute(at_us: int | None) -> str:
    return "-" if at_us is None else datetime.fromtimestamp(at_us / 1e6, UTC).strftime("%Y-%m-%d %H:%M")
