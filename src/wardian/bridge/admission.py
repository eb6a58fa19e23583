"""What a request is asked before it may have a secret: which grant it falls under, and who it comes from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from wardian.bridge.channel import Facts
from wardian.bridge.effects import EffectSpeculative
from wardian.model.errors import Forbidden, Invalid, NotFound, Unauthenticated
from wardian.model.grant import SAFE_METHODS, Admission, Grant, InDoubt
from wardian.model.sandbox import Sandbox

_VERDICTS: Mapping[str, str] = {
    "token_missing": "show the run token: the file /run/wardian/token, or $WARDIAN_TOKEN, as the API key",
    "token_of_another_epoch": "the sandbox was restored since: read /run/wardian/token again",
    "token_of_another_sandbox": "a fork has a token of its own: read /run/wardian/token again",
    "token_expired": "read /run/wardian/token again",
}


def find(grants: Sequence[Grant], facts: Facts) -> tuple[Grant, str]:
    """The grant that a request falls under, with the one host it means here, and the path to ask for."""
    path, method = facts["path"], facts["method"]
    if not facts["base"]:
        host, port = facts["host"], facts["port"]
        for grant in grants:
            here = grant.intercept and grant.port == port and grant.covers(host)
            if here and grant.allows(method, path):
                return replace(grant, host=host), path
        raise _not_granted(method, path, host)
    name, _, rest = path.removeprefix("/").partition("/")
    named = next((each for each in grants if each.name == name), None)
    if named is None:
        raise NotFound(
            f"no grant '{name[:63]}' for this sandbox",
            code="grant_not_found",
            hint="the path begins with a grant's name; `wardian grant ls` shows them",
        )
    if named.is_wildcard:
        raise Invalid(
            f"grant '{named.name}' is for {named.host}: a base URL leads to one host",
            code="grant_is_wildcard",
            hint="ask the host itself; the bridge stands in for it",
        )
    if not named.allows(method, f"/{rest}"):
        raise _not_granted(method, f"/{rest}", named.host)
    return named, f"/{rest}"


def check(verdict: str, grant: Grant) -> None:
    """Raise :class:`Unauthenticated` unless that is enough for the grant. ``verdict`` is of the run token."""
    if verdict == "ok" or (verdict == "token_missing" and grant.admission is Admission.LINK):
        return
    raise Unauthenticated(
        f"not admitted: {verdict.replace('_', ' ')}", code=verdict, hint=_VERDICTS.get(verdict)
    )


def check_branch(sandbox: Sandbox, grant: Grant, facts: Facts) -> None:
    """Refuse what a speculative branch would do and no ledger could hold."""
    if not sandbox.spec.speculative or grant.in_doubt is InDoubt.SAFE:
        return
    unsafe = facts["method"] not in SAFE_METHODS
    if facts["upgrade"] or (unsafe and grant.in_doubt is InDoubt.OFF):
        what = "a WebSocket" if facts["upgrade"] else "a request that no ledger keeps"
        raise EffectSpeculative(
            f"this sandbox is a speculative branch: {what} cannot be held until it is promoted",
            hint=f"`wardian sandbox promote {sandbox.id}`, and ask again",
        )


def _not_granted(method: str, path: str, host: str) -> Forbidden:
    return Forbidden(
        f"no grant allows {method} {path[:200]} on {host}",
        code="not_granted",
        hint="`wardian grant ls` shows what is allowed",
    )
