"""``wardian.toml``: the native manifest. Strict: what it does not know, it refuses, with the line.

    [template]   name, isolation
    [base]       debian + packages | image | template | snapshot
    [[step]]     run | copy + to (+ owner, mode) | env | workdir | user
    [start]      command, ready, ready_timeout, ports
    [resources]  cpu, memory_mib, disk_mib
    [network]    egress (none, granted, internet), allow

``docs/manifests.md`` says what each means.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from wardian.builds.errors import BadManifest
from wardian.builds.packing import Files, Unpackable
from wardian.model.build import Base, BaseKind, Plan, Stage, Step, StepKind
from wardian.model.egress import EgressGrant, EgressMode
from wardian.model.errors import Invalid
from wardian.model.isolation import Isolation
from wardian.model.resources import Resources

STAGE = "main"
SHELL = ("/bin/bash", "-c")

_NAME = r"^[a-z0-9](?:[a-z0-9._-]{0,126}[a-z0-9])?$"
_VARIABLE = r"^[A-Za-z_][A-Za-z0-9_]*$"
Text = Annotated[str, Field(min_length=1, max_length=65536, pattern=r"^[^\x00]*$")]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class _Template(_Table):
    name: Annotated[str, Field(pattern=_NAME)] = ""
    isolation: Literal["auto", "microvm", "gvisor", "microvm-kvm", "microvm-emulated"] | None = None


class _Base(_Table):
    debian: Literal["bullseye", "bookworm", "trixie"] | None = None
    packages: list[Text] = []
    image: Text | None = None
    template: Text | None = None
    snapshot: Text | None = None

    @model_validator(mode="after")
    def _one(self) -> _Base:
        said = [name for name in ("debian", "image", "template", "snapshot") if getattr(self, name)]
        if len(said) > 1:
            raise ValueError(f"one base, not {' and '.join(said)}")
        if self.packages and said not in ([], ["debian"]):
            raise ValueError("packages go with debian; install others with a step")
        return self


class _Step(_Table):
    run: Text | list[Text] | None = None
    copy_: Text | list[Text] | None = Field(None, alias="copy")
    to: Text | None = None
    owner: Text = ""
    mode: Annotated[str, Field(pattern=r"^[0-7]{3,4}$")] | None = None
    env: dict[Annotated[str, Field(pattern=_VARIABLE)], str] | None = None
    workdir: Annotated[Text, Field(pattern="^/")] | None = None
    user: Text | None = None

    @model_validator(mode="after")
    def _one(self) -> _Step:
        kinds = {
            "run": self.run,
            "copy": self.copy_,
            "env": self.env,
            "workdir": self.workdir,
            "user": self.user,
        }
        said = [name for name, value in kinds.items() if value is not None]
        if len(said) != 1:
            raise ValueError(f"a step is one of {', '.join(kinds)}, not {' and '.join(said) or 'nothing'}")
        if self.copy_ is None and (self.to or self.owner or self.mode):
            raise ValueError("to, owner and mode go with copy")
        if self.copy_ is not None and not self.to:
            raise ValueError("copy needs to")
        return self


class _Start(_Table):
    command: Text | None = None
    ready: str | None = None
    ready_timeout: Annotated[int, Field(ge=1, le=3600)] = 600
    ports: list[Annotated[int, Field(ge=1, le=65535)]] = []


class _Resources(_Table):
    cpu: int = Resources().cpu_count
    memory_mib: int = Resources().memory_mib
    disk_mib: int = Resources().disk_mib


class _Network(_Table):
    egress: Literal["none", "granted", "internet"] | None = None
    allow: list[Text] = []

    @property
    def grant(self) -> EgressGrant:
        """What it says. Raises :class:`Invalid`."""
        mode = self.egress or ("granted" if self.allow else "internet")
        grant = EgressGrant(EgressMode(mode), tuple(self.allow))
        grant.check()
        return grant


class _Manifest(_Table):
    template: _Template = _Template()
    base: _Base = _Base()
    step: list[_Step] = []
    start: _Start = _Start()
    resources: _Resources = _Resources()
    network: _Network = _Network()


def read_wardian_toml(text: str, files: Files, *, file: str = "wardian.toml") -> tuple[str, Plan]:
    """The template's name ("" for none) and the plan. Raises :class:`BadManifest`."""
    try:
        told = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        place = re.search(r"at line (\d+)", str(error))
        raise BadManifest(f"not TOML: {error}", file=file, line=int(place[1]) if place else 0) from None
    try:
        manifest = _Manifest.model_validate(told)
    except ValidationError as error:
        first = error.errors()[0]
        raise BadManifest(_words(first), file=file, line=_line_of(text, first["loc"])) from None
    lines = _step_lines(text)
    steps: list[Step] = []
    for number, step in enumerate(manifest.step):
        line = lines[number] if number < len(lines) else 0
        try:
            steps += _steps(step, files, line)
        except Unpackable as error:
            raise BadManifest(error.message, file=file, line=line, hint=error.hint) from None
    return manifest.template.name, _plan(manifest, steps, text, file)


def _plan(manifest: _Manifest, steps: Sequence[Step], text: str, file: str) -> Plan:
    asked = manifest.resources
    try:
        resources = Resources(asked.cpu, asked.memory_mib, asked.disk_mib)
    except Invalid as error:
        raise BadManifest(error.message, file=file, line=_line_of(text, ("resources",))) from None
    try:
        egress = manifest.network.grant
    except Invalid as error:
        raise BadManifest(error.message, file=file, line=_line_of(text, ("network",))) from None
    start = manifest.start
    return Plan(
        (Stage(STAGE, _base(manifest.base), tuple(steps)),),
        resources=resources,
        start=start.command,
        ready=start.ready,
        ready_timeout_s=start.ready_timeout,
        ports=tuple(start.ports),
        isolation=manifest.template.isolation and Isolation(manifest.template.isolation),
        egress=egress,
    )


def _base(base: _Base) -> Base:
    if base.image is not None:
        reference = base.image if re.match(r"[a-z-]+:(?://|[./])", base.image) else f"docker://{base.image}"
        return Base(BaseKind.IMAGE, reference)
    if base.template is not None:
        return Base(BaseKind.TEMPLATE, base.template)
    if base.snapshot is not None:
        return Base(BaseKind.SNAPSHOT, base.snapshot)
    if base.debian is None and not base.packages:
        return Base(BaseKind.TEMPLATE, "base")
    return Base(BaseKind.DEBIAN, base.debian or "bookworm", tuple(base.packages))


def _steps(step: _Step, files: Files, line: int) -> list[Step]:
    if step.run is not None:
        argv = (*SHELL, step.run) if isinstance(step.run, str) else tuple(step.run)
        words = step.run if isinstance(step.run, str) else " ".join(step.run)
        return [Step(StepKind.RUN, argv, line, f"run {words}")]
    if step.copy_ is not None:
        sources = [step.copy_] if isinstance(step.copy_, str) else step.copy_
        packed = files.pack(sources)
        args = (packed.single, step.to or "", step.owner, step.mode or "")
        said = f"copy {' '.join(sources)} to {step.to}"
        return [Step(StepKind.COPY, args, line, said, files=packed.reference)]
    if step.env is not None:
        return [
            Step(StepKind.ENV, (name, value), line, f"env {name}", expand=True)
            for name, value in step.env.items()
        ]
    if step.workdir is not None:
        return [Step(StepKind.WORKDIR, (step.workdir,), line, f"workdir {step.workdir}")]
    return [Step(StepKind.USER, (step.user or "",), line, f"user {step.user}")]


def _words(error: Mapping[str, Any]) -> str:
    place = ".".join(str(part + 1 if isinstance(part, int) else part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        return f"{place} is not known"
    message = str(error["msg"]).removeprefix("Value error, ")
    return f"{place}: {message}" if place else message


def _step_lines(text: str) -> list[int]:
    return [n for n, line in enumerate(text.splitlines(), 1) if re.match(r"\s*\[\[\s*step\s*\]\]", line)]


def _line_of(text: str, place: Sequence[int | str]) -> int:
    """The line of a key or of the table it should be in; 0 where that cannot be said."""
    lines = text.splitlines()
    begin = 0
    if place and isinstance(place[0], str):
        headers = [
            n for n, line in enumerate(lines) if re.match(rf"\s*\[+\s*{re.escape(place[0])}\s*\]+", line)
        ]
        index = place[1] if len(place) > 1 and isinstance(place[1], int) else 0
        if index < len(headers):
            begin = headers[index] + 1
    for key in (part for part in reversed(place) if isinstance(part, str)):
        for number in range(max(begin - 1, 0), len(lines)):
            if re.match(rf"\s*[\"']?{re.escape(key)}[\"']?\s*=", lines[number]):
                return number + 1
    return begin
