"""``pyproject.toml`` (and ``uv.lock``): a Python project as a template.

The project's files are at ``/home/user/app``, its dependencies in ``/home/user/venv``, which comes first in
PATH. They are installed before the files are copied, so a change of the code alone installs nothing again.
With a ``uv.lock``, versions and hashes are exactly its own; without, they are what the index has that day.
``[tool.wardian]`` may say packages, start, ready, ports, resources and isolation.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from wardian.builds.errors import BadManifest
from wardian.builds.packing import Files, Unpackable
from wardian.model.build import Base, BaseKind, Plan, Stage, Step, StepKind
from wardian.model.errors import Invalid
from wardian.model.isolation import Isolation
from wardian.model.resources import Resources

NAME = "pyproject.toml"
LOCK = "uv.lock"
PYTHON = "3.11"
"""The Python of the Debian base."""

APP, VENV = "/home/user/app", "/home/user/venv"
REQUIREMENTS = "/home/user/.requirements.txt"


class _Own(BaseModel):
    """``[tool.wardian]``."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    packages: list[str] = []  # Debian's
    extras: list[str] = []
    start: str | None = None
    ready: str | None = None
    ports: list[Annotated[int, Field(ge=1, le=65535)]] = []
    cpu: int = Resources().cpu_count
    memory_mib: int = Resources().memory_mib
    disk_mib: int = Resources().disk_mib
    isolation: Literal["auto", "microvm", "gvisor", "microvm-kvm", "microvm-emulated"] | None = None


def read_pyproject(text: str, files: Files) -> Plan:
    """The plan of a project. Raises :class:`BadManifest`."""
    told = _toml(text, NAME)
    project = told.get("project", {})
    own = _own(told)
    _check_python(project)
    try:
        lock = files.read(LOCK)
        requirements = _wanted(project, own) if lock is None else _locked(lock, project, own)
        packed = files.pack(["."])
        wanted = files.pack_text({"requirements.txt": requirements})
    except Unpackable as error:
        raise BadManifest(error.message, file=NAME, hint=error.hint) from None
    try:
        resources = Resources(own.cpu, own.memory_mib, own.disk_mib)
    except Invalid as error:
        raise BadManifest(f"tool.wardian: {error.message}", file=NAME) from None
    base = (
        Base(BaseKind.DEBIAN, "bookworm", tuple(own.packages))
        if own.packages
        else Base(BaseKind.TEMPLATE, "base")
    )
    hashes = "--require-hashes " if lock is not None else ""
    install = f"python3 -m venv {VENV} && {VENV}/bin/pip install --no-cache-dir {hashes}-r {REQUIREMENTS}"
    steps = [
        Step(StepKind.WORKDIR, (APP,), text=f"make {APP}"),
        Step(
            StepKind.COPY,
            ("requirements.txt", REQUIREMENTS, "", ""),
            text="copy requirements",
            files=wanted.reference,
        ),
        Step(StepKind.RUN, ("/bin/bash", "-c", install), text="install the dependencies"),
        Step(StepKind.ENV, ("PATH", f"{VENV}/bin:$PATH"), text="put the environment first", expand=True),
        Step(StepKind.ENV, ("VIRTUAL_ENV", VENV), text="say which environment it is"),
        Step(StepKind.COPY, (packed.single, APP, "", ""), text="copy the project", files=packed.reference),
    ]
    if "build-system" in told:
        command = f"{VENV}/bin/pip install --no-cache-dir --no-deps --editable {APP}"
        steps.append(Step(StepKind.RUN, ("/bin/bash", "-c", command), text="install the project itself"))
    return Plan(
        (Stage("main", base, tuple(steps)),),
        resources=resources,
        start=own.start,
        ready=own.ready,
        ports=tuple(own.ports),
        isolation=own.isolation and Isolation(own.isolation),
    )


def _toml(text: str, file: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        place = re.search(r"at line (\d+)", str(error))
        raise BadManifest(f"not TOML: {error}", file=file, line=int(place[1]) if place else 0) from None


def _own(told: Mapping[str, Any]) -> _Own:
    tool = told.get("tool", {})
    if not isinstance(tool, dict) or not isinstance(told.get("project", {}), dict):
        raise BadManifest("[project] and [tool] are tables", file=NAME)
    try:
        return _Own.model_validate(tool.get("wardian", {}))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(("tool", "wardian", *map(str, first["loc"])))
        known = "is not known" if first["type"] == "extra_forbidden" else first["msg"]
        raise BadManifest(f"{place}: {known}", file=NAME) from None


def _check_python(project: Mapping[str, Any]) -> None:
    wanted = project.get("requires-python", "")
    try:
        fits = SpecifierSet(wanted).contains(f"{PYTHON}.2") if isinstance(wanted, str) else False
    except InvalidSpecifier:
        raise BadManifest(f"requires-python {wanted!r} is no version specifier", file=NAME) from None
    if not fits:
        raise BadManifest(
            f"requires-python is {wanted!r}, and the base has Python {PYTHON}",
            file=NAME,
            hint="build from an image with that Python: write a Dockerfile",
        )


def _texts(value: object, what: str) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(each, str) and "\n" not in each for each in value):
        raise BadManifest(f"{what} is not a list of requirements", file=NAME)
    return value


def _wanted(project: Mapping[str, Any], own: _Own) -> str:
    """What the project depends on, as a requirements file."""
    wanted = list(_texts(project.get("dependencies", []), "project.dependencies"))
    optional = project.get("optional-dependencies", {})
    for extra in own.extras:
        if not isinstance(optional, dict) or extra not in optional:
            raise BadManifest(f"tool.wardian.extras: the project has no extra {extra!r}", file=NAME)
        wanted += _texts(optional[extra], f"project.optional-dependencies.{extra}")
    return "".join(f"{line}\n" for line in wanted)


def _locked(text: str, project: Mapping[str, Any], own: _Own) -> str:
    """The packages of a ``uv.lock`` that the project needs, with versions and hashes."""
    packages = _toml(text, LOCK).get("package", [])
    if not isinstance(packages, list) or not all(isinstance(each, dict) for each in packages):
        raise BadManifest("package is not a list of tables", file=LOCK)
    by_name: dict[str, list[dict[str, Any]]] = {}
    for each in packages:
        by_name.setdefault(str(each.get("name")), []).append(each)
    roots = by_name.get(_normal(str(project.get("name", ""))))
    if not roots:
        raise BadManifest(
            f"the project {project.get('name')!r} is not in it", file=LOCK, hint="run `uv lock` and try again"
        )
    needed: dict[tuple[str, str], str] = {}
    pending = _dependencies(roots[0], own.extras)
    while pending:
        wanted = pending.pop()
        name, marker = str(wanted.get("name")), str(wanted.get("marker", ""))
        for package in by_name.get(name, []):
            version = str(package.get("version", ""))
            if wanted.get("version", version) != version or (name, version) in needed:
                continue
            needed[name, version] = _requirement(package, name, version, marker)
            extras = wanted.get("extra", [])
            pending += _dependencies(package, extras if isinstance(extras, list) else [])
    return "".join(needed[key] for key in sorted(needed))


def _dependencies(package: Mapping[str, Any], extras: Sequence[str]) -> list[dict[str, Any]]:
    found = list(package.get("dependencies", []))
    optional = package.get("optional-dependencies", {})
    for extra in extras:
        found += optional.get(extra, []) if isinstance(optional, dict) else []
    return [each for each in found if isinstance(each, dict)]


def _requirement(package: Mapping[str, Any], name: str, version: str, marker: str) -> str:
    if "registry" not in package.get("source", {}):
        raise BadManifest(f"{name} comes from no index", file=LOCK, hint="depend on a published version")
    archives = [package.get("sdist"), *package.get("wheels", [])]
    hashes = [str(each["hash"]) for each in archives if isinstance(each, dict) and "hash" in each]
    if not hashes or not all(re.fullmatch(r"sha256:[0-9a-f]{64}", each) for each in hashes):
        raise BadManifest(f"{name} has no sha256 digests", file=LOCK)
    if "\n" in f"{name}{version}{marker}":
        raise BadManifest(f"{name!r} is no package", file=LOCK)
    where = f" ; {marker}" if marker else ""
    return f"{name}=={version}{where} " + " ".join(f"--hash={each}" for each in hashes) + "\n"


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
