"""An effect: one request that may change something outside, as the ledger knows it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class EffectState(StrEnum):
    INTENDED = "intended"  # written before anything was sent; while nobody works on it: in doubt
    HELD = "held"  # in doubt, and a human is asked
    SPECULATED = "speculated"  # of a branch that was not promoted yet: nothing was sent
    APPROVED = "approved"  # may be sent once more
    REJECTED = "rejected"  # is not sent again
    DONE = "done"  # answered, and the answer is on record


@dataclass(frozen=True, slots=True)
class Response:
    """A recorded answer. ``blob`` names a file of the bridge's where the body did not fit a row."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes
    blob: str | None = None
    whole: bool = True


@dataclass(frozen=True, slots=True)
class Effect:
    """``digest`` is of the canonical body; ``ordinal`` counts equal requests of one step."""

    id: str
    tenant: str
    sandbox: str
    run: str
    step: str
    ordinal: int
    grant: str
    method: str
    url: str
    digest: str
    state: EffectState
    epoch: int  # the last in which it was asked for
    created_at: int
    updated_at: int
    response: Response | None = None
    delivered: bool = False  # the program inside had all of the answer

    def told(self) -> Mapping[str, Any]:
        return {
            "effectID": self.id,
            "sandboxID": self.sandbox,
            "run": self.run,
            "step": self.step,
            "ordinal": self.ordinal,
            "grant": self.grant,
            "method": self.method,
            "url": self.url,
            "state": self.state.value,
            "status": None if self.response is None else self.response.status,
            "createdAt": self.created_at,
            "updatedAt": self.updated_at,
        }
