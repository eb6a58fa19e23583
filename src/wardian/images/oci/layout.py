"""An OCI image layout, read strictly: every document and every layer is what its digest says, and bounded."""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import zstandard

from wardian.images.digests import file_digest
from wardian.images.oci.config import ImageConfig, ImageInvalid, read_config

DOCUMENT_MAX = 4 << 20
LAYERS_MAX = 256
PLAIN_MAX = 32 << 30
"""What all layers of an image may come to when they are unpacked."""

WINDOW_MAX = 128 << 20  # of zstd: what unpacking may take in memory
PIECE = 1 << 20
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Contents:
    """An image: how it wants to be run, and its layers as plain tar files, lowest first."""

    config: ImageConfig
    layers: tuple[Path, ...]


def read_layout(layout: Path, into: Path, *, plain_max: int = PLAIN_MAX) -> Contents:
    """Check the one image in ``layout`` and unpack its layers into the directory ``into``.

    Raises :class:`ImageInvalid` for anything that is not as it should be, or comes to more than
    ``plain_max`` bytes.
    """
    index = _json(layout / "index.json")
    (descriptor,) = _list(index, "manifests", 1)
    manifest = _document(layout, descriptor)
    document = _document(layout, _object(manifest, "config"))
    config = read_config(document)
    descriptors = _list(manifest, "layers", LAYERS_MAX)
    wanted = _list(_object(document, "rootfs"), "diff_ids", LAYERS_MAX)
    if len(wanted) != len(descriptors):
        raise ImageInvalid(f"the image has {len(descriptors)} layers and names {len(wanted)}")
    layers = []
    left = plain_max
    for number, (layer, digest) in enumerate(zip(descriptors, wanted, strict=True)):
        plain = into / f"{number}.tar"
        left -= _unpack(_checked_blob(layout, layer), plain, left, plain_max)
        if file_digest(plain) != digest:
            raise ImageInvalid(f"layer {number + 1} of the image is not what its configuration says")
        layers.append(plain)
    return Contents(config, tuple(layers))


def _unpack(blob: Path, plain: Path, left: int, plain_max: int) -> int:
    """Write the blob's tar to ``plain``; its size. Stops at ``left`` bytes: a bomb is not let go off."""
    size = 0
    try:
        with blob.open("rb") as packed, _unpacked(packed) as source, plain.open("wb") as out:
            while piece := source.read(PIECE):
                size += len(piece)
                if size > left:
                    raise ImageInvalid(
                        f"the image comes to more than {plain_max} bytes", code="image_too_large"
                    )
                out.write(piece)
    except (EOFError, OSError, zlib.error, zstandard.ZstdError) as error:
        raise ImageInvalid(f"a layer of the image cannot be unpacked: {error}") from error
    return size


def _unpacked(packed: IO[bytes]) -> Any:
    """By its first bytes: what a manifest calls it is not always true."""
    begin = packed.read(4)
    packed.seek(0)
    if begin.startswith(b"\x1f\x8b"):
        return gzip.GzipFile(fileobj=packed)
    if begin == b"\x28\xb5\x2f\xfd":
        decompressor = zstandard.ZstdDecompressor(max_window_size=WINDOW_MAX)
        return decompressor.stream_reader(packed, read_across_frames=True, closefd=False)
    return packed


def _document(layout: Path, descriptor: object) -> dict[str, Any]:
    return _json(_checked_blob(layout, descriptor))


def _checked_blob(layout: Path, descriptor: object) -> Path:
    """Where a descriptor's blob is; it is read and compared."""
    digest = descriptor.get("digest") if isinstance(descriptor, dict) else None
    if not isinstance(descriptor, dict) or not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
        raise ImageInvalid("the image has a descriptor without a sha256 digest")
    path = layout / "blobs/sha256" / digest.removeprefix("sha256:")
    if not path.is_file() or path.is_symlink() or path.stat().st_size != descriptor.get("size"):
        raise ImageInvalid(f"{digest} of the image is missing, or not as long as its descriptor says")
    if file_digest(path) != digest:
        raise ImageInvalid(f"{digest} of the image is damaged")
    return path


def _json(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            data = file.read(DOCUMENT_MAX + 1)
        found = json.loads(data) if len(data) <= DOCUMENT_MAX else None
    except (OSError, ValueError, RecursionError) as error:
        raise ImageInvalid(f"a document of the image cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise ImageInvalid("a document of the image is no object, or too long")
    return found


def _object(document: Mapping[str, Any], name: str) -> dict[str, Any]:
    found = document.get(name)
    if not isinstance(found, dict):
        raise ImageInvalid(f"the image's {name} is no object")
    return found


def _list(document: Mapping[str, Any], name: str, most: int) -> Sequence[Any]:
    found = document.get(name)
    if not isinstance(found, list) or not 0 < len(found) <= most:
        raise ImageInvalid(f"the image's {name} is no list of up to {most}")
    return found
