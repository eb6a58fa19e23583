"""Looking for a secret in whatever was written down, in the forms in which programs write things."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path


def forms_of(value: str) -> Iterator[bytes]:
    raw = value.encode()
    yield raw
    yield raw.hex().encode()
    for shift in range(3):  # base64 of it at any place in something longer
        text = base64.b64encode(b"\0" * shift + raw)
        yield text[-(-shift * 8 // 6) : len(text) // 4 * 4 - 4]


def search(places: Iterable[Path], forms: Sequence[bytes]) -> dict[Path, list[bytes]]:
    """What is found, by file; ``places`` are files and directories."""
    files = [each for place in places for each in ([place] if place.is_file() else place.rglob("*"))]
    found = {file: _in(file, forms) for file in files if file.is_file()}
    return {file: forms for file, forms in found.items() if forms}


def _in(path: Path, forms: Sequence[bytes]) -> list[bytes]:
    size, overlap = 1 << 24, 256
    with path.open("rb") as file:
        tail = b""
        while data := file.read(size):
            block = tail + data
            if found := [form for form in forms if form in block]:
                return found
            tail = block[-overlap:]
    return []
