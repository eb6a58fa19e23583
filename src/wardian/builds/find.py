"""From a directory to a plan: which manifest is there, and what it says."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from wardian.builds import ignore, pyproject, wardian_toml
from wardian.builds.dockerfile import read_dockerfile
from wardian.builds.errors import BadManifest
from wardian.builds.ignore import Ignore
from wardian.builds.packing import Folder
from wardian.model.build import Plan

ORDER = ("wardian.toml", "Dockerfile", "pyproject.toml")
"""The manifests, in the order in which they are looked for."""

SIZE_MAX = 1 << 20


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a manifest says. ``name`` is the template's, "" where it has none; ``remarks`` are for people."""

    path: Path
    plan: Plan
    name: str = ""
    remarks: Sequence[str] = field(default_factory=tuple)


def find(directory: Path, named: str | None = None) -> Path:
    """The manifest of a directory. Raises :class:`BadManifest` when there is none."""
    if named is not None:
        path = directory / named
        if not path.is_file():
            raise BadManifest(f"there is no {named} in {directory}")
        return path
    for name in ORDER:
        if (directory / name).is_file():
            return directory / name
    raise BadManifest(
        f"there is no manifest in {directory}",
        hint="write a Dockerfile, a pyproject.toml or a wardian.toml, or name one with --file",
    )


def read(
    path: Path,
    folder: Folder,
    *,
    arguments: Mapping[str, str] | None = None,
    is_template: Callable[[str], bool] = lambda name: False,
) -> Manifest:
    """The manifest in ``path``, whose files are those of ``folder``. Raises :class:`BadManifest`."""
    text = _text(path)
    if path.suffix == ".toml":
        if arguments:
            raise BadManifest("only a Dockerfile has build arguments", file=path.name)
        if path.name == "pyproject.toml":
            return Manifest(path, pyproject.read_pyproject(text, folder))
        name, plan = wardian_toml.read_wardian_toml(text, folder, file=path.name)
        return Manifest(path, plan, name)
    plan, remarks = read_dockerfile(
        text, folder, arguments=arguments, is_template=is_template, file=path.name
    )
    return Manifest(path, plan, remarks=remarks)


def folder_of(manifest: Path) -> Folder:
    """The files a manifest may copy from: those beside it, but for what ``.dockerignore`` excludes."""
    own = manifest.with_name(f"{manifest.name}{ignore.NAME}")
    path = own if own.is_file() else manifest.with_name(ignore.NAME)
    rules = ignore.parse_ignore(_text(path), path.name) if path.is_file() else Ignore()
    return Folder(manifest.parent, rules)


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(SIZE_MAX + 1)
        if len(data) > SIZE_MAX:
            raise BadManifest(f"larger than {SIZE_MAX >> 20} MiB", file=path.name)
        return data.decode()
    except UnicodeDecodeError as error:
        raise BadManifest(f"not UTF-8: {error.reason} at byte {error.start}", file=path.name) from None
    except OSError as error:
        raise BadManifest(f"cannot be read: {error.strerror}", file=path.name) from None
