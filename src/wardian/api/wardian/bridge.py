"""Grants, effects and budgets: what may be done through the bridge, and what was."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Query, Response
from fastapi.responses import JSONResponse
from pydantic import Field

from wardian.api.e2b.body import Body
from wardian.api.e2b.context import Bound, Plane, SandboxId, Tenant
from wardian.model.budget import Budget, Price, Scope, Unit
from wardian.model.effect import Effect
from wardian.model.egress import Egress
from wardian.model.errors import Invalid
from wardian.model.grant import Admission, Grant, InDoubt, injector_of
from wardian.model.sandbox import SandboxSpec
from wardian.sandboxes.egress import check_bound

router = APIRouter(prefix="/wardian")

LIST_MAX = 1000


class NewGrant(Body):
    name: str
    secret: str
    host: str
    injector: dict[str, Any]
    port: int = 443
    tls: bool = True
    methods: list[str] = Field(default_factory=list)
    paths: list[str] = Field(default_factory=lambda: ["/*"])
    template: str | None = None
    agent: str | None = None
    sandbox: str | None = None
    run: str | None = None
    admission: str = Admission.TOKEN.value
    inDoubt: str = InDoubt.HOLD.value
    preset: str | None = None
    intercept: bool = True

    def grant(self, tenant: str) -> Grant:
        """As it was asked for. Raises :class:`Invalid`."""
        try:
            admission, in_doubt = Admission(self.admission), InDoubt(self.inDoubt)
        except ValueError as error:
            raise Invalid(str(error), code="bad_grant") from None
        return Grant(
            id="",
            tenant=tenant,
            name=self.name,
            secret_id="",
            injector=injector_of(self.injector),
            host=self.host.strip().lower().removesuffix("."),
            created_at=0,
            port=self.port,
            tls=self.tls,
            methods=tuple(self.methods),
            paths=tuple(self.paths),
            template=self.template,
            agent=self.agent,
            sandbox=self.sandbox,
            run=self.run,
            admission=admission,
            in_doubt=in_doubt,
            preset=self.preset,
            intercept=self.intercept,
        )


class NewBudget(Body):
    scope: str
    subject: str | None = None
    unit: str
    most: int

    def budget(self, tenant: str) -> Budget:
        return _budget(tenant, self.scope, self.subject, self.unit, self.most)


class NewPrice(Body):
    model: str
    tokensIn: int
    tokensOut: int


@router.post("/grants", status_code=201)
async def add_grant(plane: Plane, tenant: Tenant, bound: Bound, body: NewGrant) -> Response:
    """Grant the use of a secret. Sandboxes that run already get what they need for it.

    A grant opens its host, so nobody makes one for a host that their key may not open.
    """
    grant = body.grant(tenant)
    check_bound(SandboxSpec(egress=Egress(allow=(grant.host,)), allow_internet=False), bound)
    made = await plane.bridge.grants.add(grant, body.secret)
    await plane.sandboxes.equip(tenant)
    return JSONResponse(_told(made), 201)


@router.get("/grants")
async def list_grants(plane: Plane, tenant: Tenant) -> Response:
    return JSONResponse([_told(grant) for grant in plane.bridge.grants.of(tenant)])


@router.delete("/grants/{reference}", status_code=204)
async def remove_grant(plane: Plane, tenant: Tenant, reference: str) -> None:
    """Withdraw a grant: the next request goes without."""
    await plane.bridge.grants.remove(tenant, reference)


@router.get("/effects")
async def list_effects(
    plane: Plane,
    tenant: Tenant,
    *,
    in_doubt: Annotated[bool, Query(alias="inDoubt")] = False,
    limit: Annotated[int, Query(ge=1, le=LIST_MAX)] = 100,
) -> Response:
    """The newest first; with ``inDoubt`` those that wait for somebody."""
    found = await plane.bridge.ledger.list(tenant, in_doubt=in_doubt, limit=limit)
    return JSONResponse([_told_effect(plane, effect) for effect in found])


@router.get("/effects/{effect_id}")
async def get_effect(plane: Plane, tenant: Tenant, effect_id: str) -> Response:
    return JSONResponse(_told_effect(plane, await plane.bridge.ledger.get(tenant, effect_id)))


@router.post("/effects/{effect_id}/approve")
async def approve(plane: Plane, tenant: Tenant, effect_id: str) -> Response:
    """Let an effect in doubt be sent once more, when it is asked for again."""
    effect = await plane.bridge.ledger.decide(tenant, effect_id, approve=True)
    return JSONResponse(_told_effect(plane, effect))


@router.post("/effects/{effect_id}/reject")
async def reject(plane: Plane, tenant: Tenant, effect_id: str) -> Response:
    """Never send an effect in doubt again."""
    effect = await plane.bridge.ledger.decide(tenant, effect_id, approve=False)
    return JSONResponse(_told_effect(plane, effect))


@router.post("/sandboxes/{sandbox_id}/promote")
async def promote(plane: Plane, tenant: Tenant, sandbox_id: SandboxId) -> Response:
    """Let a speculative branch do what it held back, once it asks again. ``held``: how many effects wait."""
    sandbox = await plane.sandboxes.promote(tenant, sandbox_id)
    held = await plane.bridge.ledger.speculated(tenant, sandbox.id)
    return JSONResponse({"sandboxID": sandbox.id, "held": held})


@router.put("/budgets", status_code=204)
async def set_budget(plane: Plane, tenant: Tenant, body: NewBudget) -> None:
    """Set how much may be used in all; what was used so far counts."""
    await plane.bridge.budgets.set(body.budget(tenant))


@router.get("/budgets")
async def list_budgets(plane: Plane, tenant: Tenant) -> Response:
    found = await plane.bridge.budgets.list(tenant)
    return JSONResponse(
        [
            {
                "scope": each.scope.value,
                "subject": each.subject,
                "unit": each.unit.value,
                "most": each.most,
                "used": each.used,
            }
            for each in found
        ]
    )


@router.delete("/budgets", status_code=204)
async def remove_budget(
    plane: Plane, tenant: Tenant, scope: str, unit: str, subject: str | None = None
) -> None:
    await plane.bridge.budgets.remove(_budget(tenant, scope, subject, unit, 0))


@router.put("/prices", status_code=204)
async def set_price(plane: Plane, tenant: Tenant, body: NewPrice) -> None:
    """What a model's tokens cost, in millionths of a dollar for a million tokens."""
    if not 1 <= len(body.model) <= 128 or min(body.tokensIn, body.tokensOut) < 0:
        raise Invalid("a price has a model and two numbers, not below 0", code="bad_price")
    await plane.bridge.budgets.set_price(Price(tenant, body.model, body.tokensIn, body.tokensOut))


def _budget(tenant: str, scope: str, subject: str | None, unit: str, most: int) -> Budget:
    try:
        place = Scope(scope)
        return Budget(tenant, place, tenant if place is Scope.TENANT else subject or "", Unit(unit), most)
    except ValueError as error:
        raise Invalid(str(error), code="bad_budget") from None


def _told(grant: Grant) -> Mapping[str, Any]:
    injector = {name: getattr(grant.injector, name) for name in type(grant.injector).__dataclass_fields__}
    return {
        "grantID": grant.id,
        "name": grant.name,
        "secretID": grant.secret_id,
        "host": grant.host,
        "port": grant.port,
        "tls": grant.tls,
        "injector": {name: value for name, value in injector.items() if value},
        "methods": list(grant.methods),
        "paths": list(grant.paths),
        "template": grant.template,
        "agent": grant.agent,
        "sandbox": grant.sandbox,
        "run": grant.run,
        "admission": grant.admission.value,
        "inDoubt": grant.in_doubt.value,
        "preset": grant.preset,
        "intercept": grant.intercept,
        "createdAt": grant.created_at,
    }


def _told_effect(plane: Plane, effect: Effect) -> Mapping[str, Any]:
    return {**effect.told(), "inDoubt": plane.bridge.ledger.is_in_doubt(effect)}
