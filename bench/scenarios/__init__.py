"""One scenario per file; each is a function from the lab to its tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from bench.lab import Lab
from bench.measure import Section
from bench.scenarios import (
    bridge,
    build,
    builtin,
    burst,
    calls,
    compress,
    create,
    domain,
    emulation,
    execute,
    idle,
    lifecycle,
    microvm,
    relay,
    runner_swap,
    runs,
    scan,
    small_files,
    transfer,
    watch,
)

SCENARIOS: Mapping[str, Callable[[Lab], Sequence[Section]]] = {
    "create": create.run,
    "exec": execute.run,
    "lifecycle": lifecycle.run,
    "burst": burst.run,
    "transfer": transfer.run,
    "files": small_files.run,
    "watch": watch.run,
    "calls": calls.run,
    "build": build.run,
    "domain": domain.run,
    "idle": idle.run,
    "builtin": builtin.run,
    "scan": scan.run,
    "compress": compress.run,
    "bridge": bridge.run,
    "relay": relay.run,
    "runs": runs.run,
    "swap": runner_swap.run,
    "microvm": microvm.run,
    "emulation": emulation.run,
}
