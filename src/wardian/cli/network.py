"""``wardian sandbox network``: what may leave a sandbox, shown and changed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from wardian.cli import remote
from wardian.cli.arguments import Id, address
from wardian.cli.output import Json, errors, note, out, print_json
from wardian.cli.remote import Address
from wardian.model.egress import EgressMode
from wardian.model.errors import Conflict


def network(
    context: typer.Context,
    sandbox: Id,
    *,
    allow: Annotated[
        list[str],
        typer.Option(help="Allow an address, a CIDR, a domain or '*.' and a domain. May be repeated."),
    ] = [],  # noqa: B006 - typer copies it
    deny: Annotated[
        list[str], typer.Option(help="Deny an address or a CIDR; what is allowed wins. May be repeated.")
    ] = [],  # noqa: B006
    rule: Annotated[
        list[str],
        typer.Option(
            help="A finer rule, 'allow|deny HOST[:PORTS] [METHODS [PATH ...]]'; the first that applies "
            "decides. May be repeated."
        ),
    ] = [],  # noqa: B006
    dns: Annotated[
        list[str], typer.Option(help="Ask this DNS server instead of the host's. May be repeated.")
    ] = [],  # noqa: B006
    internet: Annotated[
        bool | None,
        typer.Option(
            "--internet/--no-internet", help="Everything that is not denied, or only what is allowed."
        ),
    ] = None,
    egress: Annotated[
        EgressMode | None,
        typer.Option(help="How wide: nothing but what is allowed, granted hosts as well, or everything."),
    ] = None,
    drop_proxy: Annotated[
        bool, typer.Option("--drop-proxy", help="Stop using the SOCKS5 proxy that it goes out through.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Show what may leave a sandbox, or say it anew.

    Any option replaces all the rules there were, at once, also of a paused sandbox; connections that the new
    ones forbid are cut. Only one site, for example:

        wardian sandbox network ID --no-internet --allow pypi.org --allow '*.pythonhosted.org'
    """
    with errors(as_json=as_json):
        wanted: dict[str, Any] | None = None
        if allow or deny or rule or dns or drop_proxy or internet is not None or egress is not None:
            wide = internet is not False and egress in (None, EgressMode.INTERNET)
            wanted = {"allowOut": allow, "denyOut": deny, "allow_internet_access": wide}
            if egress is not None:
                wanted["egress"] = egress.value
            if rule:
                wanted["egressRules"] = rule
            if dns:
                wanted["dnsServers"] = dns
        settings = remote.run(_settle(address(context), sandbox, wanted, drop_proxy=drop_proxy))
        if as_json:
            print_json(settings)
        else:
            _show(settings)
            if wanted is not None:
                note("changed; new connections follow this from now on")


async def _settle(
    server: Address, name: str, wanted: Mapping[str, Any] | None, *, drop_proxy: bool
) -> dict[str, Any]:
    async with remote.connect(server) as there:
        found = await there.sandbox(name)
        if wanted is not None:
            if "egressProxy" in found["network"] and not drop_proxy:
                raise Conflict(
                    "this sandbox goes out through a proxy, whose password only its owner knows",
                    hint="change its rules with the SDK, or give --drop-proxy",
                )
            await there.call("PUT", f"/sandboxes/{found['sandboxID']}/network", body=dict(wanted))
            found = await there.sandbox(found["sandboxID"])
    settings: dict[str, Any] = found["network"] | {"allowInternetAccess": found["allowInternetAccess"]}
    return settings


def _show(settings: Mapping[str, Any]) -> None:
    proxy = settings.get("egressProxy")
    rows = (
        ("egress", "internet" if settings["allowInternetAccess"] else settings.get("egress", "none")),
        ("allowed", ", ".join(settings.get("allowOut", ())) or "-"),
        ("denied", ", ".join(settings.get("denyOut", ())) or "-"),
        ("rules", "; ".join(settings.get("egressRules", ())) or "-"),
        ("dns", ", ".join(settings["dnsServers"]) or "none" if "dnsServers" in settings else "the host's"),
        ("proxy", proxy["address"] if proxy else "-"),
        ("ports", "public" if settings["allowPublicTraffic"] else "only with the traffic token"),
    )
    for name, value in rows:
        out.print(f"{name:9} {value}", markup=False, soft_wrap=True)
