"""The steps of E2B's template API as a plan.

The SDKs send a list of steps upon an image or a template. What an image's name means here, and where the
meaning of a step is E2B's own, is decided in this file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated

from pydantic import Field

from wardian.api.e2b.body import Body, template_reference
from wardian.model.build import KEPT, Base, BaseKind, Plan, Stage, Step, StepKind
from wardian.model.errors import Invalid, Unsupported

STEPS_MAX = 1000
ARGS_MAX = 1024
SUITE = "bookworm"
"""The Debian that `stable` means: the one the base template is made of."""

SHELL = ("/bin/bash", "-l", "-c")
"""What E2B runs a command with."""

SETTLE = "sleep 20"
"""The ready check of a start command that has none, as E2B has it."""

OURS: Mapping[str, str] = {
    "e2bdev/base": "base",
    "e2bdev/code-interpreter": "code-interpreter-v1",
    "e2bdev/desktop": "desktop",
}
"""E2B's own images, and the templates that stand for them here."""

DEBIAN: Mapping[str, str] = {
    "latest": SUITE,
    "stable": SUITE,
    "bookworm": "bookworm",
    "12": "bookworm",
    "trixie": "trixie",
    "13": "trixie",
}
"""Tags of the image ``debian`` (``-slim`` or not) that are made here, from Debian's packages."""

_IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@/-]{0,511}")
_FILES_HASH = re.compile(r"[0-9a-f]{64}")
_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class BuildStep(Body):
    type: str
    args: Annotated[list[Annotated[str, Field(max_length=256 * 1024)]], Field(max_length=ARGS_MAX)] = Field(
        default_factory=list
    )
    filesHash: str | None = None
    force: bool | None = None
    forceUpload: bool | None = None  # the SDK's own business: it has uploaded by now

    def step(self, digests: Mapping[str, str]) -> Step:
        """This step as one of ours: failures are told by its number. Raises :class:`Invalid`."""
        if any("\0" in arg for arg in self.args):
            raise Invalid("a step must not hold a NUL byte", code="bad_step")
        match self.type.upper():
            case "RUN":
                command, user = self._args(1, 2)
                return self._step(StepKind.RUN, *SHELL, command, user=user)
            case "ENV":
                return self._env()
            case "WORKDIR":
                (path,) = self._args(1, 1)
                return self._step(StepKind.WORKDIR, path, expand=True)
            case "USER":
                (name,) = self._args(1, 1)
                return self._step(StepKind.USER, name, expand=True)
            case "COPY":
                if self.filesHash not in digests:
                    raise Invalid("a COPY step needs the hash of its files", code="bad_step")
                source, destination, owner, mode = self._args(2, 4)
                if owner == KEPT:
                    raise Invalid(f"{owner!r} is nobody's name", code="bad_step")
                files = f"context:{digests[self.filesHash or '']}"
                return self._step(StepKind.COPY, source, destination, owner, mode, files=files)
            case other:
                raise Unsupported(f"steps of type {other[:32]!r} are not supported", code="step_unsupported")

    def _env(self) -> Step:
        if not self.args or len(self.args) % 2:
            raise Invalid("an ENV step has pairs of names and values", code="bad_step")
        for name in self.args[::2]:
            if not _ENV_NAME.fullmatch(name):
                raise Invalid(f"{name[:64]!r} is no name of a variable", code="bad_step")
        return self._step(StepKind.ENV, *self.args, expand=True)

    def _step(
        self, kind: StepKind, *args: str, files: str = "", expand: bool = False, user: str = ""
    ) -> Step:
        text = f"{kind.value.upper()} {' '.join(self.args)}"
        return Step(kind, args, text=text, files=files, force=bool(self.force), expand=expand, user=user)

    def _args(self, least: int, most: int) -> tuple[str, ...]:
        """Exactly ``most`` arguments: the ones left out are empty."""
        if not least <= len(self.args) <= most or not all(self.args[:least]):
            raise Invalid(f"a {self.type.upper()} step has {least} to {most} arguments", code="bad_step")
        return (*self.args, *[""] * (most - len(self.args)))


class Registry(Body):
    type: str
    username: str | None = None
    password: str | None = None
    serviceAccountJson: str | None = None
    awsAccessKeyId: str | None = None
    awsSecretAccessKey: str | None = None
    awsRegion: str | None = None

    def credentials(self) -> tuple[str, str]:
        """A user name and a password, as every registry takes them. Raises :class:`Unsupported`."""
        if self.type == "registry" and self.username and self.password:
            return self.username, self.password
        if self.type == "gcp" and self.serviceAccountJson:
            return "_json_key", self.serviceAccountJson
        if self.type == "aws":
            raise Unsupported(
                "signing in to AWS's registry is not supported",
                code="registry_unsupported",
                hint="pass username 'AWS' and the password that `aws ecr get-login-password` prints",
            )
        raise Invalid(f"a registry of type {self.type[:32]!r} lacks its credentials", code="bad_registry")


class BuildStart(Body):
    """What a build is asked: ``TemplateBuildStartV2``."""

    fromImage: str | None = None
    fromTemplate: str | None = None
    fromImageRegistry: Registry | None = None
    force: bool | None = None
    steps: Annotated[list[BuildStep], Field(max_length=STEPS_MAX)] | None = None
    startCmd: str | None = None
    readyCmd: str | None = None

    def files(self) -> dict[str, str]:
        """The hashes of the files that steps copy, and what each is shown as. Raises :class:`Invalid`."""
        found: dict[str, str] = {}
        for step in self.steps or ():
            if step.type.upper() == "COPY":
                if step.filesHash is None or not _FILES_HASH.fullmatch(step.filesHash):
                    raise Invalid("a COPY step needs the hash of its files", code="bad_step")
                found[step.filesHash] = step.args[0] if step.args else ""
        return found

    def plan(self, digests: Mapping[str, str]) -> Plan:
        """The plan of one stage. ``digests`` are of the uploaded files, by the client's hash."""
        base = self._base()
        inherits = base.kind is BaseKind.TEMPLATE
        start, ready = self.startCmd or None, self.readyCmd or None
        if start is None and ready is None:
            start = ready = None if inherits else ""
        elif start is not None:
            ready = ready or SETTLE
        elif not inherits:
            start = ""
        steps = tuple(step.step(digests) for step in self.steps or ())
        return Plan((Stage("template", base, steps),), start=start, ready=ready, force=bool(self.force))

    def _base(self) -> Base:
        if bool(self.fromImage) == bool(self.fromTemplate):
            raise Invalid("exactly one of fromImage and fromTemplate must be given", code="bad_base")
        if self.fromTemplate:
            return Base(BaseKind.TEMPLATE, template_reference(self.fromTemplate))
        image = (self.fromImage or "").strip().removeprefix("docker://")
        if not _IMAGE.fullmatch(image):
            raise Invalid(f"invalid image name {image[:64]!r}", code="bad_image")
        fetched = Base(BaseKind.IMAGE, f"docker://{image}", plain=True)
        if self.fromImageRegistry is not None:
            username, password = self.fromImageRegistry.credentials()
            return replace(fetched, username=username, password=password)
        return well_known(image) or fetched


def well_known(image: str) -> Base | None:
    """What stands for an image that everybody begins with, so that no registry is needed for it."""
    name, _, tag = image.partition(":")
    if (template := OURS.get(name)) is not None:
        return Base(BaseKind.TEMPLATE, template)
    if name == "debian" and (suite := DEBIAN.get((tag or "latest").removesuffix("-slim"))) is not None:
        return Base(BaseKind.DEBIAN, suite)
    return None
