"""Our nouns in the protocol's words."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from wardian.api.e2b.network import told_network
from wardian.api.errors import rest_body
from wardian.model.build import BuildLine
from wardian.model.errors import WardianError
from wardian.model.isolation import Isolation
from wardian.model.sandbox import Sandbox, Snapshot, has_memory
from wardian.model.template import Assignment, Build, Failure, Listed
from wardian.sandboxes.service import Metric

ENVD_VERSION = "0.6.13"
"""The version of E2B's agent whose behaviour ours has: what the SDKs decide their features by."""

CLIENT_ID = "wardian"
"""A field of old that every client still wants to see."""


def timestamp(us: int) -> str:
    """RFC 3339 with microseconds, UTC."""
    return (
        datetime.fromtimestamp(us // 1_000_000, UTC)
        .replace(microsecond=us % 1_000_000)
        .strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    )


def created(sandbox: Sandbox, *, domain: str | None) -> dict[str, Any]:
    """``Sandbox``: the answer to create, connect, resume and fork, with the keys to the data plane."""
    return _identity(sandbox) | _access(sandbox, domain=domain)


def listed(sandbox: Sandbox) -> dict[str, Any]:
    """``ListedSandbox``."""
    return _identity(sandbox) | {
        "startedAt": timestamp(sandbox.started_at),
        "endAt": timestamp(sandbox.end_at),
        "state": sandbox.public_state,
        "cpuCount": sandbox.resources.cpu_count,
        "memoryMB": sandbox.resources.memory_mib,
        "diskSizeMB": sandbox.resources.disk_mib,
        "metadata": dict(sandbox.spec.metadata),
    }


def detail(sandbox: Sandbox, *, domain: str | None, enter: bool = True) -> dict[str, Any]:
    """``SandboxDetail``. The keys to the data plane are for those who may ``enter``."""
    spec = sandbox.spec
    told = listed(sandbox) | (_access(sandbox, domain=domain) if enter else {"domain": domain})
    told |= {
        "allowInternetAccess": spec.allow_internet,
        "lifecycle": {"autoResume": spec.auto_resume, "onTimeout": spec.on_timeout.value},
        "network": told_network(spec),
    }
    if sandbox.public_state == "paused":
        told["pauseMode"] = "full" if has_memory(sandbox.snapshot_id or "") else "filesystem"
    return told


def _identity(sandbox: Sandbox) -> dict[str, Any]:
    told: dict[str, Any] = {
        "sandboxID": sandbox.id,
        "templateID": sandbox.template_id,
        "clientID": CLIENT_ID,
        "envdVersion": ENVD_VERSION,
        "isolation": sandbox.isolation,  # ours: how strong the wall is, in every answer
    }
    if sandbox.spec.volume_mounts:
        told["volumeMounts"] = [{"name": each.name, "path": each.path} for each in sandbox.spec.volume_mounts]
    if sandbox.spec.speculative:
        told["speculative"] = True  # ours: it does nothing outside until it is promoted
    if sandbox.build_id:
        told["templateBuildID"] = sandbox.build_id  # ours, as the next: which bytes it began with
    if sandbox.tree:
        told["templateDigest"] = sandbox.tree
    if sandbox.template_alias:
        told["alias"] = sandbox.template_alias
    return told


def _access(sandbox: Sandbox, *, domain: str | None) -> dict[str, Any]:
    told: dict[str, Any] = {
        "domain": domain,
        "trafficAccessToken": None if sandbox.spec.allow_public_traffic else sandbox.traffic_token,
    }
    if sandbox.access_token:
        told["envdAccessToken"] = sandbox.access_token
    return told


def forked(outcome: Sandbox | WardianError, *, domain: str | None) -> dict[str, Any]:
    """``SandboxForkResult``: each fork succeeds or fails by itself."""
    if isinstance(outcome, WardianError):
        return {"error": rest_body(outcome)}
    return {"sandbox": created(outcome, domain=domain)}


def snapshot(kept: Snapshot) -> dict[str, Any]:
    """``SnapshotInfo``."""
    return {"snapshotID": kept.id, "names": list(kept.names), "isolation": kept.isolation}


def metric(sample: Metric) -> dict[str, Any]:
    """``SandboxMetric``."""
    return {
        "timestamp": timestamp(sample.at),
        "timestampUnix": sample.at // 1_000_000,
        "cpuCount": sample.cpu_count,
        "cpuUsedPct": sample.cpu_used_pct,
        "memUsed": sample.memory_used,
        "memTotal": sample.memory_total,
        "memCache": sample.memory_cache,
        "diskUsed": sample.disk_used,
        "diskTotal": sample.disk_total,
    }


def template(known: Listed, build: Build) -> dict[str, Any]:
    """``Template``, with its newest build. Who made it is not kept."""
    shown = known.template
    aliases = [shown.alias] if shown.alias else []
    return {
        "templateID": shown.id,
        "buildID": build.id,
        "cpuCount": build.resources.cpu_count,
        "memoryMB": build.resources.memory_mib,
        "diskSizeMB": build.resources.disk_mib,
        "public": shown.public,
        "aliases": aliases,
        "names": list(shown.names),
        "createdAt": timestamp(shown.created_at),
        "updatedAt": timestamp(shown.updated_at),
        "createdBy": None,
        "lastSpawnedAt": None if shown.last_spawned_at is None else timestamp(shown.last_spawned_at),
        "spawnCount": shown.spawn_count,
        "buildCount": known.build_count,
        "envdVersion": ENVD_VERSION,
        "buildStatus": build.status.value,
        "templateDigest": build.tree or None,  # ours: of the files, as sandboxes report it
        "isolation": build.isolation or Isolation.AUTO,  # ours: what its sandboxes get that ask for none
        "isDefault": shown.tenant is None,
    }


def template_build(build: Build) -> dict[str, Any]:
    """``TemplateBuild``."""
    told: dict[str, Any] = {
        "buildID": build.id,
        "status": build.status.value,
        "createdAt": timestamp(build.created_at),
        "updatedAt": timestamp(build.updated_at),
        "cpuCount": build.resources.cpu_count,
        "memoryMB": build.resources.memory_mib,
        "diskSizeMB": build.resources.disk_mib,
        "envdVersion": ENVD_VERSION,
        "templateDigest": build.tree or None,
    }
    if build.finished_at is not None:
        told["finishedAt"] = timestamp(build.finished_at)
    return told


def template_with_builds(known: Listed, newest: Build, builds: Sequence[Build]) -> dict[str, Any]:
    """``TemplateWithBuilds``."""
    return template(known, newest) | {"builds": [template_build(build) for build in builds]}


def build_line(line: BuildLine) -> dict[str, Any]:
    """``BuildLogEntry``."""
    told = {"timestamp": timestamp(line.at), "level": line.level, "message": line.message}
    return told | {"step": line.step.partition("/")[0]} if line.step else told


def build_failure(failure: Failure, lines: Sequence[BuildLine]) -> dict[str, Any]:
    """``BuildStatusReason``."""
    told: dict[str, Any] = {
        "message": failure.message,
        "logEntries": [build_line(line) for line in lines],
    }
    return told | {"step": failure.step} if failure.step else told


def assignment(assigned: Assignment, build: Build) -> dict[str, Any]:
    """``TemplateTagAssignment``."""
    return {
        "assignmentId": assigned.id,
        "buildID": build.id,
        "assignedAt": timestamp(assigned.assigned_at),
        "buildCreatedAt": timestamp(build.created_at),
        "buildFinishedAt": None if build.finished_at is None else timestamp(build.finished_at),
    }
