"""A machine's record: what a later process needs to find it again, and to know that it is the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from wardian.isolation.host.process import HeldProcess, start_time
from wardian.isolation.host.substrate import Substrate
from wardian.isolation.port import MachineSpec, RootImage
from wardian.model.resources import Resources


def record_of(
    driver: str,
    machine_id: str,
    spec: MachineSpec,
    substrate: Substrate,
    processes: Mapping[str, HeldProcess],
) -> dict[str, Any]:
    """JSON-able; ``processes`` by their roles."""
    return {
        "driver": driver,
        "id": machine_id,
        "root": {"path": str(spec.root.path), "digest": spec.root.digest},
        "resources": asdict(spec.resources),
        "build": substrate.build,
        "version": substrate.version,
        "cpu_features": sorted(substrate.cpu_features),
        **{role: {"pid": each.pid, "start": start_time(each.pid)} for role, each in processes.items()},
    }


def spec_in(record: Mapping[str, Any]) -> MachineSpec:
    """The spec in a machine's record."""
    root = RootImage(path=Path(record["root"]["path"]), digest=record["root"]["digest"])
    return MachineSpec(root=root, resources=Resources(**record["resources"]))


def substrate_in(record: Mapping[str, Any]) -> Substrate:
    """What the machine of a record stands on, which may not be what new ones would."""
    return Substrate(record["version"], record["build"], frozenset(record["cpu_features"]))


def are_recorded(processes: Mapping[str, HeldProcess], record: Mapping[str, Any]) -> bool:
    """Whether these are the very processes that a record names."""
    return all(
        (each.pid, start_time(each.pid)) == (record[role]["pid"], record[role]["start"])
        for role, each in processes.items()
    )


__all__ = ["are_recorded", "record_of", "spec_in", "substrate_in"]
