"""Rows to values and back, where more than one query module needs it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from sqlalchemy import Row

from wardian.model.build import Surroundings
from wardian.model.confines import FREE, Confines
from wardian.model.egress import Egress, EgressGrant, EgressMode, EgressProxy, GrantedHost
from wardian.model.isolation import Isolation, IsolationLevel, Wanted
from wardian.model.resources import Resources
from wardian.model.sandbox import EndReason, OnTimeout, Sandbox, SandboxSpec, Snapshot, State
from wardian.model.volume import VolumeMount


def resources_of(row: Row[Any]) -> Resources:
    return Resources(row.cpu_count, row.memory_mib, row.disk_mib, row.processes_max)


def surroundings_values(surroundings: Surroundings) -> dict[str, Any]:
    return {"env": dict(surroundings.env), "workdir": surroundings.workdir, "user": surroundings.user}


def surroundings_of(values: Mapping[str, Any] | None) -> Surroundings:
    """The value of a column; rows from before there was one have the defaults."""
    return Surroundings(**values) if values else Surroundings()


def sandbox_values(sandbox: Sandbox, *, node_id: str) -> dict[str, Any]:
    return {
        "id": sandbox.id,
        "tenant_id": sandbox.tenant,
        "node_id": node_id,
        "template_id": sandbox.template_id,
        "template_alias": sandbox.template_alias,
        "template_digest": sandbox.template_digest,
        "build_id": sandbox.build_id,
        "tree": sandbox.tree,
        "surroundings": surroundings_values(sandbox.surroundings),
        "state": sandbox.state.value,
        "epoch": sandbox.epoch,
        "driver": sandbox.driver,
        "isolation": sandbox.isolation,
        **asdict(sandbox.resources),
        "spec": spec_values(sandbox.spec),
        "access_token": sandbox.access_token,
        "traffic_token": sandbox.traffic_token,
        "created_at": sandbox.created_at,
        "started_at": sandbox.started_at,
        "end_at": sandbox.end_at,
        "ended_at": sandbox.ended_at,
        "end_reason": sandbox.end_reason and sandbox.end_reason.value,
        "snapshot_id": sandbox.snapshot_id,
        "parent_id": sandbox.parent_id,
        "machine_id": sandbox.machine_id,
        "machine": sandbox.machine and dict(sandbox.machine),
        "idempotency_key": sandbox.spec.idempotency_key,
    }


def sandbox_of(row: Row[Any]) -> Sandbox:
    return Sandbox(
        id=row.id,
        tenant=row.tenant_id,
        template_id=row.template_id,
        template_alias=row.template_alias,
        template_digest=row.template_digest,
        build_id=row.build_id,
        tree=row.tree,
        surroundings=surroundings_of(row.surroundings),
        state=State(row.state),
        epoch=row.epoch,
        driver=row.driver,
        isolation=row.isolation,
        resources=resources_of(row),
        spec=_spec_of(row.spec),
        access_token=row.access_token,
        traffic_token=row.traffic_token,
        created_at=row.created_at,
        started_at=row.started_at,
        end_at=row.end_at,
        ended_at=row.ended_at,
        end_reason=EndReason(row.end_reason) if row.end_reason else None,
        snapshot_id=row.snapshot_id,
        parent_id=row.parent_id,
        machine_id=row.machine_id,
        machine=row.machine,
    )


def spec_values(spec: SandboxSpec) -> dict[str, Any]:
    """A spec as JSON."""
    values = {name: getattr(spec, name) for name in SandboxSpec.__dataclass_fields__}
    return values | {
        "metadata": dict(spec.metadata),
        "env": dict(spec.env),
        "on_timeout": spec.on_timeout.value,
        "https_ports": list(spec.https_ports),
        "egress": asdict(spec.egress),
        "granted_hosts": [asdict(grant) for grant in spec.granted_hosts],
        "volume_mounts": [asdict(mount) for mount in spec.volume_mounts],
        "isolation": asdict(spec.isolation),
        "run_line": list(spec.run_line),
    }


def _spec_of(values: dict[str, Any]) -> SandboxSpec:
    # A row written by another version may know fields that we do not, or not know ours.
    known = {name: value for name, value in values.items() if name in SandboxSpec.__dataclass_fields__}
    return SandboxSpec(
        **known
        | {
            "on_timeout": OnTimeout(values["on_timeout"]),
            "https_ports": tuple(values.get("https_ports", ())),
            "egress": _egress_of(values.get("egress", {})),
            "granted_hosts": tuple(GrantedHost(**each) for each in values.get("granted_hosts", ())),
            "volume_mounts": tuple(VolumeMount(**each) for each in values.get("volume_mounts", ())),
            "isolation": _wanted_of(values.get("isolation", {})),
            "run_line": tuple(values.get("run_line", ())),
        }
    )


def confines_values(confines: Confines) -> dict[str, Any]:
    """Confines as JSON."""
    return {"egress": egress_grant_values(confines.egress), "isolation": asdict(confines.isolation)}


def confines_of(values: dict[str, Any]) -> Confines:
    """Those that :func:`confines_values` told; none, for rows older than that."""
    if not values:
        return FREE
    return Confines(egress_grant_of(values["egress"]), _wanted_of(values["isolation"]))


def _wanted_of(values: dict[str, Any]) -> Wanted:
    asked, minimum = values.get("asked"), values.get("minimum")
    return Wanted(asked and Isolation(asked), minimum and IsolationLevel(minimum))


def _egress_of(values: dict[str, Any]) -> Egress:
    servers, proxy = values.get("dns_servers"), values.get("proxy")
    return Egress(
        allow=tuple(values.get("allow", ())),
        deny=tuple(values.get("deny", ())),
        dns_servers=None if servers is None else tuple(servers),
        proxy=None if proxy is None else EgressProxy(**proxy),
        rules=tuple(values.get("rules", ())),
        grants=bool(values.get("grants", False)),
    )


def egress_grant_values(grant: EgressGrant) -> dict[str, Any]:
    return {"mode": grant.mode.value, "hosts": list(grant.hosts)}


def egress_grant_of(values: Mapping[str, Any] | None) -> EgressGrant:
    """The value of a column; rows from before there was one reach as far as any."""
    return EgressGrant(EgressMode(values["mode"]), tuple(values["hosts"])) if values else EgressGrant()


def snapshot_of(row: Row[Any]) -> Snapshot:
    return Snapshot(
        id=row.id,
        tenant=row.tenant_id,
        sandbox_id=row.sandbox_id,
        template_id=row.template_id,
        kind=row.kind,
        names=(row.name,) if row.name else (),
        parent_id=row.parent_id,
        digest=row.digest,
        size_bytes=row.size_bytes,
        created_at=row.created_at,
        root_digest=row.root_digest,
        resources=resources_of(row),
        build_id=row.build_id,
        tree=row.tree,
        surroundings=surroundings_of(row.surroundings),
        driver=row.driver,
        isolation=row.isolation,
    )
