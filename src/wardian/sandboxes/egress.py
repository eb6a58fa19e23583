"""How wide the egress of a sandbox is: what was asked for, else what its template says, and never more than
the key that asks allows."""

from __future__ import annotations

from dataclasses import replace

from wardian.model.egress import EgressGrant, EgressMode
from wardian.model.errors import Forbidden
from wardian.model.sandbox import SandboxSpec

NO_BOUND = EgressGrant()


def settled(
    spec: SandboxSpec, mode: EgressMode | None, *, default: EgressGrant, bound: EgressGrant
) -> SandboxSpec:
    """``spec`` with its egress decided. Raises Forbidden for more than ``bound``.

    Who says which hosts to allow gets these; who does not, those that are granted.
    """
    usual = default.narrowed(bound)
    chosen = usual.mode if mode is None else mode
    if chosen is not EgressMode.INTERNET:
        said = mode is None and (spec.egress.allow or spec.egress.rules)
        hosts = usual.hosts if chosen is EgressMode.GRANTED and not said else ()
        allow = tuple(dict.fromkeys((*spec.egress.allow, *hosts)))
        egress = replace(spec.egress, allow=allow, grants=chosen is EgressMode.GRANTED)
        spec = replace(spec, allow_internet=False, egress=egress)
    check_bound(spec, bound)
    return spec


def check_bound(spec: SandboxSpec, bound: EgressGrant) -> None:
    """Raise Forbidden when a sandbox of that spec could reach more than ``bound``."""
    if bound.covers(spec.egress, internet=spec.allow_internet):
        return
    hosts = f" ({', '.join(bound.hosts)})" if bound.hosts else ""
    raise Forbidden(
        f"this key's sandboxes may reach no more than egress '{bound.mode}'{hosts}",
        code="egress_beyond_key",
        hint="ask for less, or for a key that may: `wardian key create --egress`",
    )
