"""Templates: what ``create`` clones. A template has builds, tags name them, sandboxes remember theirs.

A template is a name that stays; a build is what it stood for at one time, and never changes once it is ready.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from wardian.model.build import BuildStatus, Lock, Surroundings
from wardian.model.egress import EgressGrant, EgressMode
from wardian.model.errors import Invalid
from wardian.model.isolation import Isolation
from wardian.model.resources import Resources

DEFAULT_TAG = "default"
"""The tag that a reference without one means."""

NAME_FORM = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,126}[a-z0-9])?")
TAG_FORM = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,62})?")


@dataclass(frozen=True, slots=True)
class Template:
    """A template as recorded. ``tenant`` owns it; None is the house itself, whose templates are public.

    A ``public`` one may be used, and read about, by every tenant; only its owner may change it. Times are in
    microseconds since the epoch.
    """

    id: str
    alias: str | None
    tenant: str | None
    created_at: int
    updated_at: int
    public: bool = False
    spawn_count: int = 0
    last_spawned_at: int | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """What it is called, with its namespace: the tenant it belongs to."""
        if self.alias is None:
            return ()
        return (self.alias if self.tenant is None else f"{self.tenant}/{self.alias}",)


@dataclass(frozen=True, slots=True)
class Listed:
    """A template as it is told of, with how many builds it has had."""

    template: Template
    build_count: int


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a build failed: ``step`` counts from 1; 0 is the base, and "finalize" what follows the steps."""

    message: str
    step: str = ""


@dataclass(frozen=True, slots=True)
class Build:
    """One build of a template. ``tags`` are moved to it when it becomes ready.

    From then on ``root_digest`` (``sha256:<hex>``) names its root image, ``tree`` is the digest of the files
    in it, and ``snapshot_id`` names the warm snapshot that sandboxes are restored from, or is None to boot
    the root image. ``plan`` and ``lock`` say what it was asked and what it was made of. ``isolation`` is what
    its sandboxes get that ask for none themselves (None: ``auto``).
    """

    id: str  # a UUID
    template_id: str
    status: BuildStatus
    resources: Resources
    created_at: int
    updated_at: int
    tags: tuple[str, ...] = (DEFAULT_TAG,)
    finished_at: int | None = None
    root_digest: str = ""
    tree: str = ""
    snapshot_id: str | None = None
    surroundings: Surroundings = field(default_factory=Surroundings)
    start: str = ""
    ready: str = ""
    isolation: Isolation | None = None
    plan: Mapping[str, Any] | None = None
    lock: Lock | None = None
    failure: Failure | None = None

    @property
    def egress(self) -> EgressGrant:
        """What may leave its sandboxes, where nothing else is said. Its plan says."""
        told = (self.plan or {}).get("egress")
        return EgressGrant(EgressMode(told["mode"]), tuple(told["hosts"])) if told else EgressGrant()


@dataclass(frozen=True, slots=True)
class Edition:
    """A template at one of its builds: what a reference means."""

    template: Template
    build: Build


@dataclass(frozen=True, slots=True)
class Assignment:
    """A tag was given to a build. The newest of a tag is the one in force."""

    id: str  # a UUID
    template_id: str
    tag: str
    build_id: str
    assigned_at: int


@dataclass(frozen=True, slots=True)
class Reference:
    """``[namespace/]name[:tag]``, where the name may be an id as well."""

    name: str
    namespace: str | None = None
    tag: str = DEFAULT_TAG

    @classmethod
    def parse(cls, text: str) -> Reference | None:
        """What ``text`` refers to, or None when it has not the form of a template's name."""
        path, colon, tag = text.strip().lower().partition(":")
        namespace, slash, name = path.rpartition("/")
        if not NAME_FORM.fullmatch(name) or (colon and not TAG_FORM.fullmatch(tag)):
            return None
        if slash and not NAME_FORM.fullmatch(namespace):
            return None
        return cls(name, namespace or None, tag or DEFAULT_TAG)


def checked_name(text: str) -> Reference:
    """The reference in ``text``, for a template that is to be named so. Raises :class:`Invalid`."""
    if (reference := Reference.parse(text)) is None:
        raise Invalid(
            f"invalid template name {text[:64]!r}",
            code="bad_name",
            hint="lower-case letters, digits, '.', '_' and '-', and perhaps a ':tag'",
        )
    return reference


def checked_tag(text: str) -> str:
    """``text`` as a tag. Raises :class:`Invalid`."""
    tag = text.strip().lower()
    if not TAG_FORM.fullmatch(tag):
        raise Invalid(
            f"invalid tag {text[:64]!r}", code="bad_tag", hint="lower-case letters, digits, '.', '_' and '-'"
        )
    return tag
