"""What Firecracker's API takes, written down by us from its OpenAPI description (1.17, ``firecracker.yaml``).

Only the endpoints that we use. Kept apart from what we send, so that the two can be compared: no request of
ours may have a field that is not here, lack one that is required, or hold a value of another type. ``WHEN``
says in which state of the machine a request is taken, as the description's "pre-boot only" and so on do.

Part of the stand-in as well, so it imports nothing of ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Schema = Mapping[str, Any]


def of(required: str = "", **properties: Schema) -> Schema:
    return {"type": "object", "required": required.split(), "properties": properties}


STRING: Schema = {"type": "string"}
BOOLEAN: Schema = {"type": "boolean"}
INTEGER: Schema = {"type": "integer"}
NATURAL: Schema = {"type": "integer", "minimum": 0}


def one_of(*words: str) -> Schema:
    return {"type": "string", "enum": words}


TOKEN_BUCKET = of("refill_time size", one_time_burst=NATURAL, refill_time=NATURAL, size=NATURAL)
RATE_LIMITER = of(bandwidth=TOKEN_BUCKET, ops=TOKEN_BUCKET)

BODIES: Mapping[str, Schema] = {
    "PUT /machine-config": of(
        "mem_size_mib vcpu_count",
        cpu_template=one_of("C3", "T2", "T2S", "T2CL", "T2A", "V1N1", "None"),
        smt=BOOLEAN,
        mem_size_mib=INTEGER,
        track_dirty_pages=BOOLEAN,
        vcpu_count={"type": "integer", "minimum": 1, "maximum": 32},
        huge_pages=one_of("None", "Transparent", "2M"),
    ),
    "PUT /boot-source": of(
        "kernel_image_path", boot_args=STRING, initrd_path=STRING, kernel_image_path=STRING
    ),
    "PUT /drives/{id}": of(
        "drive_id is_root_device",
        drive_id=STRING,
        partuuid=STRING,
        is_root_device=BOOLEAN,
        cache_type=one_of("Unsafe", "Writeback"),
        is_read_only=BOOLEAN,
        path_on_host=STRING,
        rate_limiter=RATE_LIMITER,
        io_engine=one_of("Sync", "Async"),
        socket=STRING,
    ),
    "PATCH /drives/{id}": of("drive_id", drive_id=STRING, path_on_host=STRING, rate_limiter=RATE_LIMITER),
    "PUT /vsock": of(
        "guest_cid uds_path",
        guest_cid={"type": "integer", "minimum": 3},
        uds_path=STRING,
        vsock_id=STRING,
    ),
    "PUT /balloon": of(
        "amount_mib deflate_on_oom",
        amount_mib=INTEGER,
        deflate_on_oom=BOOLEAN,
        stats_polling_interval_s=INTEGER,
        free_page_hinting=BOOLEAN,
        free_page_reporting=BOOLEAN,
    ),
    "PATCH /balloon": of("amount_mib", amount_mib=INTEGER),
    "PUT /entropy": of(rate_limiter=RATE_LIMITER),
    "PUT /metrics": of("metrics_path", metrics_path=STRING),
    "PUT /actions": of("action_type", action_type=one_of("FlushMetrics", "InstanceStart", "SendCtrlAltDel")),
    "PATCH /vm": of("state", state=one_of("Paused", "Resumed")),
    "PUT /snapshot/create": of(
        "mem_file_path snapshot_path",
        mem_file_path=STRING,
        snapshot_path=STRING,
        snapshot_type=one_of("Full", "Diff"),
    ),
    "PUT /snapshot/load": of(
        "snapshot_path",
        enable_diff_snapshots=BOOLEAN,
        track_dirty_pages=BOOLEAN,
        mem_file_path=STRING,
        mem_backend=of("backend_type backend_path", backend_type=one_of("File", "Uffd"), backend_path=STRING),
        snapshot_path=STRING,
        resume_vm=BOOLEAN,
        network_overrides={"type": "array"},
        vsock_override=of("uds_path", uds_path=STRING),
        clock_realtime=BOOLEAN,
    ),
}

BEFORE, AFTER, ALWAYS = "before", "after", "always"
WHEN: Mapping[str, str] = {
    "GET /": ALWAYS,
    "PUT /machine-config": BEFORE,
    "PUT /boot-source": BEFORE,
    "PUT /drives/{id}": BEFORE,
    "PUT /vsock": BEFORE,
    "PUT /balloon": BEFORE,
    "PUT /entropy": BEFORE,
    "PUT /snapshot/load": BEFORE,
    "PUT /metrics": ALWAYS,
    "PUT /actions": ALWAYS,
    "PATCH /drives/{id}": AFTER,
    "PATCH /balloon": ALWAYS,
    "PATCH /vm": AFTER,
    "PUT /snapshot/create": AFTER,
}


def endpoint(method: str, path: str) -> str:
    """The endpoint of a request, as it is called here."""
    head, _, _ = path.removeprefix("/").partition("/")
    return f"{method} /drives/{{id}}" if head == "drives" else f"{method} {path}"


def faults(schema: Schema, value: Any, place: str = "body") -> list[str]:
    """What is wrong with ``value``; nothing, if it is as described."""
    kind = schema["type"]
    if not _is(kind, value):
        return [f"{place} is no {kind}"]
    if value not in schema.get("enum", (value,)):
        return [f"{place} is {value!r}"]
    if kind == "integer" and not schema.get("minimum", value) <= value <= schema.get("maximum", value):
        return [f"{place} is {value}, out of range"]
    if kind != "object":
        return []
    found = [f"{place} lacks {name}" for name in schema["required"] if name not in value]
    for name, part in value.items():
        if name not in schema["properties"]:
            found.append(f"{place}.{name} is not described")
        else:
            found += faults(schema["properties"][name], part, f"{place}.{name}")
    return found


def _is(kind: str, value: Any) -> bool:
    if kind == "integer":
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, {"object": dict, "string": str, "boolean": bool, "array": list}[kind])
