"""Our nouns in the protocol's words."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from wardian.api.e2b.network import told_network
from wardian.api.errors import rest_body
from wardian.model.errors import WardianError
from wardian.model.sandbox import Sandbox, Snapshot, has_memory
from wardian.model.template import Template
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


def detail(sandbox: Sandbox, *, domain: str | None) -> dict[str, Any]:
    """``SandboxDetail``."""
    spec = sandbox.spec
    told = listed(sandbox) | _access(sandbox, domain=domain)
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
    return {"snapshotID": kept.id, "names": list(kept.names)}


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


def template(known: Template) -> dict[str, Any]:
    """``Template``. What is not kept (who made it, how often it was used) is told as nobody and never."""
    aliases = [known.alias] if known.alias else []
    made = timestamp(known.created_at)
    return {
        "templateID": known.id,
        "buildID": build_id(known),
        "cpuCount": known.resources.cpu_count,
        "memoryMB": known.resources.memory_mib,
        "diskSizeMB": known.resources.disk_mib,
        "public": known.tenant is None,
        "aliases": aliases,
        "names": aliases,
        "createdAt": made,
        "updatedAt": made,
        "createdBy": None,
        "lastSpawnedAt": None,
        "spawnCount": 0,
        "buildCount": 1,
        "envdVersion": ENVD_VERSION,
        "buildStatus": "ready",
    }


def build_id(known: Template) -> str:
    """A template's only build so far, named after its root image, in the form of a UUID."""
    digits = known.root_digest.rpartition(":")[2][:32].ljust(32, "0")
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


def template_with_builds(known: Template) -> dict[str, Any]:
    """``TemplateWithBuilds``."""
    told = template(known)
    kept = (
        "templateID",
        "public",
        "aliases",
        "names",
        "createdAt",
        "updatedAt",
        "lastSpawnedAt",
        "spawnCount",
    )
    build = {
        "buildID": told["buildID"],
        "status": "ready",
        "createdAt": told["createdAt"],
        "updatedAt": told["updatedAt"],
        "finishedAt": told["updatedAt"],
        "cpuCount": told["cpuCount"],
        "memoryMB": told["memoryMB"],
        "diskSizeMB": told["diskSizeMB"],
        "envdVersion": ENVD_VERSION,
    }
    return {key: told[key] for key in kept} | {"builds": [build]}
