"""Change the rules of what may leave a sandbox: one row and a record, so a crash leaves nothing to repair."""

from __future__ import annotations

from dataclasses import replace

from wardian.model.egress import Egress
from wardian.sandboxes.owner import Owner


async def set_rules(owner: Owner, *, egress: Egress, allow_internet: bool) -> None:
    """New connections follow the rules at once; those under way that they forbid are cut."""
    owner.check_present()
    await owner.change(spec=replace(owner.sandbox.spec, egress=egress, allow_internet=allow_internet))
    owner.works.outbound.changed(owner.sandbox)
    _log_rules(owner)


def log_special_rules(owner: Owner) -> None:
    """Record the rules a sandbox begins with, unless they are everybody's."""
    spec = owner.sandbox.spec
    if spec.egress != Egress() or not spec.allow_internet:
        _log_rules(owner)


def _log_rules(owner: Owner) -> None:
    """The rules as they are now, without anything secret."""
    spec = owner.sandbox.spec
    egress, proxy = spec.egress, spec.egress.proxy
    owner.log.append(
        "sandbox.network",
        internet=spec.allow_internet,
        allow=list(egress.allow),
        deny=list(egress.deny),
        rules=list(egress.rules),
        grants=egress.grants,
        dns_servers=None if egress.dns_servers is None else list(egress.dns_servers),
        proxy=None if proxy is None else proxy.address,
    )
