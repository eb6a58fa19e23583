"""What the routes of the control plane are given."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Annotated, cast
from urllib.parse import unquote

from fastapi import Depends, Request

from wardian.api.e2b.body import template_reference
from wardian.bridge.service import Bridge
from wardian.builds.service import Builds
from wardian.model.confines import Confines
from wardian.model.egress import Egress, EgressGrant
from wardian.model.errors import Invalid, NotFound
from wardian.model.isolation import Wanted
from wardian.sandboxes.service import Sandboxes
from wardian.sandboxes.templates import Templates
from wardian.vault.vault import Vault
from wardian.volumes.service import Volumes

_SANDBOX_ID = re.compile(r"([a-z0-9]{1,64})(?:-[a-z0-9-]*)?")


@dataclass(frozen=True, slots=True)
class ControlPlane:
    """The control plane's connections to the rest of the house.

    ``domain`` is what the names of sandbox ports end in (``{port}-{id}.{domain}``); ``timeout_max_s`` is the
    longest time a sandbox may ask for at once. ``check_egress`` raises Invalid for rules that lead where the
    server lets nobody go; ``seal`` makes a secret (and what it is for) fit to be kept.
    """

    sandboxes: Sandboxes
    templates: Templates
    builds: Builds
    domain: str | None
    timeout_max_s: int
    check_egress: Callable[[Egress], Awaitable[None]]
    seal: Callable[[str, str], str]
    vault: Vault
    volumes: Volumes
    bridge: Bridge

    def timeout(self, seconds: int, *, smallest: int = 1) -> int:
        """``seconds`` if a sandbox may ask for it. Raises :class:`Invalid` in the protocol's words."""
        if seconds < smallest:
            least = "greater than 0" if smallest == 1 else f"at least {smallest}"
            raise Invalid(f"Timeout must be {least}", code="bad_timeout")
        if seconds > self.timeout_max_s:
            hours = self.timeout_max_s / 3600
            raise Invalid(f"Timeout cannot be greater than {hours:g} hours", code="bad_timeout")
        return seconds


def sandbox_unknown(sandbox_id: str) -> NotFound:
    """The answer to an id that is absent, or another tenant's."""
    return NotFound(
        f"Sandbox \"{sandbox_id}\" doesn't exist or you don't have access to it", code="sandbox_not_found"
    )


async def _sandbox_id(sandbox_id: str) -> str:
    match = _SANDBOX_ID.fullmatch(sandbox_id)
    if match is None:
        raise sandbox_unknown(sandbox_id[:64])
    return match[1]


async def _template_ref(template: str) -> str:
    return template_reference(unquote(template))  # clients encode "/" and ":" in ids, some of them twice


async def _plane(request: Request) -> ControlPlane:
    """The house as this caller may have it: what is behind a weaker wall than its key demands is not there
    to be got, by whatever route."""
    plane, wanted = cast(ControlPlane, request.app.state.plane), cast(Wanted, request.state.wanted)
    return replace(plane, sandboxes=plane.sandboxes.within(wanted), builds=plane.builds.within(wanted))


async def _tenant(request: Request) -> str:
    return cast(str, request.state.tenant)  # put there by the front, which checked the key


async def _bound(request: Request) -> EgressGrant:
    return cast(EgressGrant, request.state.bound)


async def _confines(request: Request) -> Confines:
    return Confines(request.state.bound, request.state.wanted)


Plane = Annotated[ControlPlane, Depends(_plane)]
Tenant = Annotated[str, Depends(_tenant)]
Bound = Annotated[EgressGrant, Depends(_bound)]
"""How far out the sandboxes of the key that asks may reach."""
Confined = Annotated[Confines, Depends(_confines)]
"""How far whatever comes of the request may go, once nobody is there who could be asked."""
SandboxId = Annotated[str, Depends(_sandbox_id)]
"""The id in the path; ``{id}-{client id}``, as old clients have it, counts as ``{id}``."""
TemplateRef = Annotated[str, Depends(_template_ref)]
"""The template in the path, by id or ``[namespace/]alias``."""
