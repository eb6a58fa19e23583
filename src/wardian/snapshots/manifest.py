"""The manifest: what a snapshot is, beside its files. Written last: without one it is no snapshot.

The bytes are canonical JSON (sorted keys, no spaces), so the digest of the manifest names the whole snapshot.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from wardian.isolation.port import Capabilities, ImageRefused, MachineImage
from wardian.model.errors import Conflict, WardianError
from wardian.model.resources import Resources

FORMAT = 2
READABLE = frozenset({1, 2})
"""The first has digests of another kind: :mod:`wardian.snapshots.digests`."""
MANIFEST_NAME = "manifest.json"
MANIFEST_BYTES_MAX = 1 << 20
_FACTS_MAX = 64
FILES_DRIVER = "files"
"""What made a snapshot without memory: no driver, so any host that has its root image can use it."""


class SnapshotDamaged(Conflict):
    """The snapshot on disk is not what was written: bytes are missing, added or changed."""

    code = "snapshot_damaged"


@dataclass(frozen=True, slots=True)
class File:
    """One file of a snapshot."""

    size: int
    digest: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """Everything needed to decide whether, and with what, a snapshot can be restored."""

    id: str
    parent: str | None
    created_at: int
    driver: str
    build: str
    cpu_features: frozenset[str]
    root_digest: str
    resources: Resources
    files: Mapping[str, File]
    facts: Mapping[str, Any] = field(default_factory=dict)  # sandbox, epoch, processes: for people and tools
    format: int = FORMAT

    @property
    def size_bytes(self) -> int:
        return sum(file.size for file in self.files.values())

    @property
    def digest(self) -> str:
        """The digest of the manifest's bytes: it names the whole snapshot."""
        return digest_of(self.encode())

    def encode(self) -> bytes:
        document = {
            "format": self.format,
            "id": self.id,
            "parent": self.parent,
            "created_at": self.created_at,
            "driver": self.driver,
            "build": self.build,
            "cpu_features": sorted(self.cpu_features),
            "root_digest": self.root_digest,
            "resources": asdict(self.resources),
            "files": {name: asdict(file) for name, file in self.files.items()},
            "facts": dict(list(self.facts.items())[:_FACTS_MAX]),
        }
        return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()

    @classmethod
    def decode(cls, raw: bytes) -> Manifest:
        """Parse a manifest. Raises :class:`SnapshotDamaged`, or :class:`ImageRefused` for another format."""
        try:
            document = json.loads(raw)
            if document["format"] not in READABLE:
                raise ImageRefused(
                    f"this snapshot has format {document['format']!r}; we read formats up to {FORMAT}",
                    hint="restore it with the version of wardian that made it",
                )
            files = {
                str(name): File(int(f["size"]), str(f["digest"])) for name, f in document["files"].items()
            }
            if any("/" in name or name in ("", ".", "..", MANIFEST_NAME) for name in files):
                raise ValueError("a file name leaves the directory")
            return cls(
                id=str(document["id"]),
                parent=document["parent"],
                created_at=int(document["created_at"]),
                driver=str(document["driver"]),
                build=str(document["build"]),
                cpu_features=frozenset(map(str, document["cpu_features"])),
                root_digest=str(document["root_digest"]),
                resources=Resources(**document["resources"]),
                files=files,
                facts=document.get("facts", {}),
                format=document["format"],
            )
        except ImageRefused:
            raise
        except (ValueError, KeyError, TypeError, AttributeError, WardianError) as error:
            raise SnapshotDamaged(f"its manifest cannot be read: {error}") from error

    def image(self, directory: Path) -> MachineImage:
        return MachineImage(
            directory=directory,
            files={name: file.size for name, file in self.files.items()},
            driver=self.driver,
            build=self.build,
            cpu_features=self.cpu_features,
            root_digest=self.root_digest,
            resources=self.resources,
        )

    def check(self, host: Capabilities) -> None:
        """Raise :class:`ImageRefused` with the reason if this host cannot restore the snapshot."""
        if self.driver == FILES_DRIVER:
            return
        if self.driver != host.driver:
            raise ImageRefused(
                f"its memory was captured by the driver {self.driver}, and {host.driver} cannot restore it",
                hint="boot from a snapshot of files, or from the template",
            )
        if self.build != host.build:
            raise ImageRefused(
                f"it was made by build {self.build[:24]}; this host has {host.build[:24]}",
                hint="install the same build of the sandbox kernel, or create a new sandbox",
            )
        if missing := self.cpu_features - host.cpu_features:
            raise ImageRefused(
                f"it needs CPU features this host lacks: {', '.join(sorted(missing)[:8])}",
                hint="resume it on a machine of the kind it was made on",
            )


def digest_of(raw: bytes) -> str:
    return "sha256:" + sha256(raw).hexdigest()
