"""``wardian doctor``: what this host can do, what is missing, and how to get it."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

from rich.text import Text

from wardian.app import drivers as isolation
from wardian.cli import remote, server_file
from wardian.cli.domain_findings import domain_findings
from wardian.cli.engine_findings import engine_findings
from wardian.cli.finding import Finding
from wardian.cli.host_findings import program_findings, source_findings
from wardian.cli.output import err, out, print_json
from wardian.config import Settings
from wardian.images.base import base_recipe
from wardian.images.catalog import Catalog, default_cache
from wardian.isolation.drivers import Drivers
from wardian.isolation.port import Capabilities
from wardian.model.errors import WardianError

DISK_FREE_MIN = 2 << 30
MEMORY_FREE_MIN = 1 << 30


def examination(*, as_json: bool) -> bool:
    """Examine this host, show what was found, and answer whether it can run sandboxes."""
    with err.status("looking at this host") if err.is_terminal else nullcontext():
        findings = list(examine())
    usable = all(finding.level != "missing" for finding in findings)
    if as_json:
        print_json({"usable": usable, "findings": [asdict(finding) for finding in findings]})
    else:
        _show(findings)
    return usable


def examine() -> Iterator[Finding]:
    """Every finding, the cheap ones first."""
    yield _python()
    yield _root()
    yield from program_findings()
    yield _resources("memory", _memory_free(), MEMORY_FREE_MIN, "each sandbox takes 8 MB and what runs in it")
    cache = default_cache()
    yield _resources(
        "disk", _disk_free(cache), DISK_FREE_MIN, f"images and snapshots are kept below {cache.parent}"
    )
    yield from source_findings()
    yield _image()
    yield from asyncio.run(_probe())
    yield _kvm()
    yield _snapshots()
    yield from engine_findings(server_file.default_data_dir())
    yield from domain_findings(server_file.default_data_dir())
    yield _server()


def _python() -> Finding:
    version = ".".join(str(part) for part in sys.version_info[:3])
    return Finding("python", "ok", version)


def _root() -> Finding:
    if os.geteuid() == 0:
        return Finding("root", "ok", "running as root")
    return Finding(
        "root", "missing", "machines are made by root", "run `wardian doctor` and `wardian serve` as root"
    )


def _resources(name: str, free: int, least: int, why: str) -> Finding:
    detail = f"{free / (1 << 30):.1f} GiB free"
    if free >= least:
        return Finding(name, "ok", detail)
    return Finding(name, "warning", detail, f"{least >> 30} GiB or more are better: {why}")


def _memory_free() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) << 10
    return 0


def _disk_free(path: Path) -> int:
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def _image() -> Finding:
    image = Catalog().find(base_recipe())
    if image is None:
        return Finding("base image", "missing", "not built on this host", "wardian template build base")
    size = f"{image.manifest.size_bytes / 1e6:.0f} MB"
    return Finding(
        "base image", "ok", f"{image.manifest.digest[:19]}…, {size}, {len(image.manifest.packages)} packages"
    )


async def _probe() -> list[Finding]:
    """Every driver, and why it works or does not. One that works is enough."""
    with tempfile.TemporaryDirectory(prefix="wardian-doctor-") as state:
        drivers = await Drivers.probe(isolation.drivers_of(Settings.load(data_dir=Path(state))))
        await drivers.close()
    return [_driver(host, needed=not drivers.usable) for host in drivers.hosts]


def _driver(host: Capabilities, *, needed: bool) -> Finding:
    name = f"driver {host.driver}"
    if not host.usable:
        return Finding(name, "missing" if needed else "warning", host.reason, host.remedy)
    details = (f"{fact.replace('_', ' ')} {value}" for fact, value in sorted(host.details.items()))
    facts = ", ".join([host.version, *details])
    return Finding(name, "ok", f"isolation {host.level}; booted and answered: {facts}")


def _kvm() -> Finding:
    if os.access("/dev/kvm", os.R_OK | os.W_OK):
        return Finding("kvm", "ok", "present: whether a machine boots under it, the drivers above say")
    return Finding("kvm", "ok", "absent: no microVM under hardware virtualisation on this host")


def _snapshots() -> Finding:
    after_s = Settings.load(data_dir=server_file.default_data_dir()).snapshots_compress_after_s
    told = f"are compressed {after_s} s after their last use" if after_s else "stay as they are on disk"
    return Finding("snapshots", "ok", f"{told} (WARDIAN_SNAPSHOTS_COMPRESS_AFTER_S={after_s})")


def _server() -> Finding:
    try:
        server = remote.find_server(None, None, None)
        asyncio.run(_ask(server))
    except WardianError as error:
        return Finding("server", "warning", error.message, error.hint or "")
    return Finding("server", "ok", f"answers at {server.url}")


async def _ask(server: remote.Address) -> None:
    async with remote.connect(server) as there:
        await there.call("GET", "/v2/sandboxes", query={"limit": 1})


def _show(findings: list[Finding]) -> None:
    marks = {"ok": ("✓", "green"), "warning": ("!", "yellow"), "missing": ("✗", "red")}
    width = max(len(finding.name) for finding in findings) + 2
    for finding in findings:
        mark, colour = marks[finding.level]
        out.print(
            Text.assemble((f"{mark} ", colour), f"{finding.name:{width}}", finding.detail), soft_wrap=True
        )
        if finding.remedy:
            out.print(Text.assemble(" " * (width + 2), (f"→ {finding.remedy}", "bold")), soft_wrap=True)
    missing = sum(finding.level == "missing" for finding in findings)
    out.print()
    if missing:
        out.print(
            Text(
                f"{missing} of {len(findings)} requirements are missing: this host cannot run sandboxes yet",
                "red",
            )
        )
    else:
        out.print(Text("this host can run sandboxes", "green"))
