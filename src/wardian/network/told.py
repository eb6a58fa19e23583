"""Which addresses a sandbox was told for which names, of late: what makes a bare address speak for a name."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable

REMEMBER_S = 600.0
"""How long an address speaks for a name by itself."""
AGREE_S = 86400.0
"""How long a name that is shown agrees with its address: some programs ask once and never again."""
PER_SANDBOX_MAX = 256
SANDBOXES_MAX = 4096


class Told:
    """A bounded memory; what is forgotten has to be asked for again."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._of: OrderedDict[str, OrderedDict[tuple[str, str], float]] = OrderedDict()

    def note(self, sandbox_id: str, name: str, addresses: Iterable[str]) -> None:
        """A sandbox was told that ``name`` is at ``addresses``."""
        entries = self._of.setdefault(sandbox_id, OrderedDict())
        self._of.move_to_end(sandbox_id)
        for address in addresses:
            entries[address, name] = self._clock()
            entries.move_to_end((address, name))
        while len(entries) > PER_SANDBOX_MAX:
            entries.popitem(last=False)
        while len(self._of) > SANDBOXES_MAX:
            self._of.popitem(last=False)

    def names(self, sandbox_id: str, address: str, *, within_s: float = REMEMBER_S) -> frozenset[str]:
        """The names that a sandbox was told an address for."""
        since = self._clock() - within_s
        entries = self._of.get(sandbox_id, OrderedDict())
        return frozenset(name for (at, name), told in entries.items() if at == address and told >= since)

    def forget(self, sandbox_id: str) -> None:
        self._of.pop(sandbox_id, None)
