"""One scenario per file; each is a function from the lab to its tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from bench.lab import Lab
from bench.measure import Section
from bench.scenarios import builtin, burst, create, domain, execute, idle, lifecycle, scan, transfer

SCENARIOS: Mapping[str, Callable[[Lab], Sequence[Section]]] = {
    "create": create.run,
    "exec": execute.run,
    "lifecycle": lifecycle.run,
    "burst": burst.run,
    "transfer": transfer.run,
    "domain": domain.run,
    "idle": idle.run,
    "builtin": builtin.run,
    "scan": scan.run,
}
