"""Makes OCI images by hand, as layouts and archives."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zstandard

from wardian.images.oci.config import host_architecture

Content = bytes | str | None  # a file, a symlink's target, a directory
PACKERS: Mapping[str, Callable[[bytes], bytes]] = {
    "tar": lambda data: data,
    "tar+gzip": lambda data: gzip.compress(data, mtime=0),
    "tar+zstd": lambda data: zstandard.compress(data),
}


def layer(files: Mapping[str, Content | tarfile.TarInfo], *, mode: int = 0o755) -> bytes:
    """A layer's tar, its entries in the order given."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.mode = mode
            if isinstance(content, tarfile.TarInfo):
                tar.addfile(content, io.BytesIO(b"\0" * content.size) if content.isreg() else None)
            elif content is None:
                info.type = tarfile.DIRTYPE
                tar.addfile(info)
            elif isinstance(content, str):
                info.type, info.linkname = tarfile.SYMTYPE, content
                tar.addfile(info)
            else:
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


@dataclass(frozen=True, slots=True)
class Blob:
    """Bytes and what a descriptor says of them."""

    data: bytes
    media_type: str

    @property
    def digest(self) -> str:
        return f"sha256:{hashlib.sha256(self.data).hexdigest()}"

    @property
    def descriptor(self) -> dict[str, Any]:
        return {"mediaType": self.media_type, "digest": self.digest, "size": len(self.data)}


def image(
    layers: Sequence[bytes],
    config: Mapping[str, Any] | None = None,
    *,
    packing: str = "tar+gzip",
    architecture: str | None = None,
) -> tuple[Blob, list[Blob]]:
    """An image: its manifest, and all that the manifest refers to."""
    document = {
        "architecture": architecture or host_architecture(),
        "os": "linux",
        "config": dict(config or {}),
        "rootfs": {"type": "layers", "diff_ids": [Blob(data, "").digest for data in layers]},
    }
    kind = "application/vnd.oci.image"
    blobs = [Blob(PACKERS[packing](data), f"{kind}.layer.v1.{packing}") for data in layers]
    described = Blob(json.dumps(document).encode(), f"{kind}.config.v1+json")
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{kind}.manifest.v1+json",
        "config": described.descriptor,
        "layers": [blob.descriptor for blob in blobs],
    }
    return Blob(json.dumps(manifest).encode(), f"{kind}.manifest.v1+json"), [described, *blobs]


def write_layout(directory: Path, made: tuple[Blob, list[Blob]], *, tag: str = "latest") -> Path:
    """The image as a layout in ``directory``."""
    manifest, blobs = made
    (directory / "blobs/sha256").mkdir(parents=True)
    for blob in (manifest, *blobs):
        (directory / "blobs/sha256" / blob.digest.removeprefix("sha256:")).write_bytes(blob.data)
    (directory / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    named = {**manifest.descriptor, "annotations": {"org.opencontainers.image.ref.name": tag}}
    index = {"schemaVersion": 2, "manifests": [named]}
    (directory / "index.json").write_text(json.dumps(index))
    return directory


def write_archive(file: Path, layout: Path) -> Path:
    """A layout as one tar."""
    with tarfile.open(file, "w") as tar:
        for path in sorted(layout.rglob("*")):
            tar.add(path, path.relative_to(layout), recursive=False)
    return file
