"""A budget: how much of something a tenant, a template's sandboxes, or one run may use through the bridge."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from wardian.model.errors import Invalid


class Scope(StrEnum):
    TENANT = "tenant"
    TEMPLATE = "template"
    RUN = "run"


class Unit(StrEnum):
    CALLS = "calls"
    BYTES = "bytes"
    TOKENS = "tokens"
    MICRO_USD = "micro_usd"


@dataclass(frozen=True, slots=True)
class Budget:
    """``subject``: the tenant, the template's name, or the run's id."""

    tenant: str
    scope: Scope
    subject: str
    unit: Unit
    most: int
    used: int = 0

    def check(self) -> None:
        if not 0 <= self.most < 1 << 62:
            raise Invalid("a budget is a whole number, not below 0", code="bad_budget")
        if not 1 <= len(self.subject) <= 64:
            raise Invalid("a budget is for a tenant, a template or a run", code="bad_budget")

    @property
    def spent(self) -> bool:
        return self.used >= self.most


@dataclass(frozen=True, slots=True)
class Price:
    """What a model's tokens cost, in millionths of a dollar for a million tokens."""

    tenant: str
    model: str
    tokens_in: int
    tokens_out: int

    def cost(self, tokens_in: int, tokens_out: int) -> int:
        """Millionths of a dollar, rounded up."""
        return -(-(tokens_in * self.tokens_in + tokens_out * self.tokens_out) // 1_000_000)
