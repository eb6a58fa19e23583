"""How far whatever comes of a request may go: what its key allows, and what was asked for.

A sandbox is made while its caller is there, so the key can be asked. A run may begin when a clock says so,
and go on after a crash: it takes its confines along.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from wardian.model.egress import EgressGrant
from wardian.model.isolation import Wanted


@dataclass(frozen=True, slots=True)
class Confines:
    """``egress`` is how far out, ``isolation`` how strong the wall is at least."""

    egress: EgressGrant = field(default_factory=EgressGrant)
    isolation: Wanted = field(default_factory=Wanted)

    def within(self, other: Confines) -> Confines:
        """Both. Raises :class:`Invalid` if they contradict each other."""
        return Confines(self.egress.narrowed(other.egress), self.isolation.and_also(other.isolation))


FREE = Confines()

__all__ = ["FREE", "Confines"]
