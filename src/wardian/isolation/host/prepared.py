"""What every waiting machine does alike: it becomes something once."""

from __future__ import annotations

from wardian.isolation.port import MachineSpec, Prepared
from wardian.model.errors import Conflict


class HostPrepared(Prepared):
    """See :class:`Prepared`."""

    def __init__(self, machine_id: str, spec: MachineSpec) -> None:
        self.id = machine_id
        self.spec = spec
        self.consumed = False

    def consume(self) -> None:
        """Raise :class:`Conflict` unless this is the first time."""
        if self.consumed:
            raise Conflict(f"machine {self.id} was already started", code="already_started")
        self.consumed = True


__all__ = ["HostPrepared"]
