"""A build: what a manifest asks for, whatever language it was written in, and what comes of it.

Dockerfile, pyproject.toml, wardian.toml and the E2B template API all become one :class:`Plan`; one builder
carries it out. Pure values: no I/O, no clock.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from wardian.model.egress import EgressGrant
from wardian.model.isolation import Isolation
from wardian.model.resources import Resources


class StepKind(StrEnum):
    """What a step does. ``args`` of each is said beside it."""

    RUN = "run"  # the argument vector, as it is executed: ("/bin/bash", "-c", "pip install numpy")
    COPY = "copy"  # (source in the files or the stage, destination, owner, "" or KEPT, octal mode or "")
    ENV = "env"  # (name, value, name, value, …), which are set at once
    WORKDIR = "workdir"  # (absolute path,), made if it is missing
    USER = "user"  # (name,), made if it is missing; or "name:group"


KEPT = "="
"""The owner of a COPY whose files stay whose they are where they come from. "" is the present user."""


@dataclass(frozen=True, slots=True)
class Step:
    """One step. ``line`` is where the manifest says it (1-based; 0: nowhere), ``text`` what it says there.

    ``files`` names what a COPY takes from: ``context:<sha256>`` (a tar of the matched files, which the build
    context holds under that digest), or ``stage:<name>``. ``force`` passes the cache by. With ``expand``
    the builder replaces ``$NAME`` and ``${NAME}`` in ``args`` (but an ENV's names) by what is set so far;
    ``\\$`` is a dollar. ``user`` is whom a RUN runs as, if not the user set so far; it must be there.
    """

    kind: StepKind
    args: tuple[str, ...]
    line: int = 0
    text: str = ""
    files: str = ""
    force: bool = False
    expand: bool = False
    user: str = ""


class BaseKind(StrEnum):
    """Where a stage begins. What ``reference`` means is said beside each."""

    DEBIAN = "debian"  # a suite, such as ``bookworm``; ``packages`` are installed in it
    TEMPLATE = "template"  # another template of the tenant, or a public one: [namespace/]alias[:tag] or id
    SNAPSHOT = "snapshot"  # a snapshot's files
    IMAGE = (
        "image"  # an OCI image: ``docker://…``, ``oci:<dir>[:tag]``, ``oci-archive:``, ``docker-archive:``
    )
    STAGE = "stage"  # an earlier stage of the same plan


@dataclass(frozen=True, slots=True)
class Base:
    """What a stage stands on. ``packages`` (Debian only) are names, or ``name=version`` when pinned.

    Steps upon an image begin as whom and where the image says; with ``plain``, as ``user`` at home.
    """

    kind: BaseKind
    reference: str
    packages: tuple[str, ...] = ()
    plain: bool = False
    username: str = ""  # of a registry
    password: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class Stage:
    """A base and the steps upon it. The last stage of a plan is the one that becomes the template."""

    name: str
    base: Base
    steps: tuple[Step, ...] = ()


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything a build is told.

    ``start`` is started once at the end, with ``bash -l -c``, and is running in every sandbox; ``ready`` is
    run until it succeeds, before the warm snapshot. ``None`` leaves the base's own in force, "" has none.
    ``isolation`` is what it is built in, and what its sandboxes get that ask for none themselves.
    """

    stages: tuple[Stage, ...]
    resources: Resources = field(default_factory=Resources)
    start: str | None = None
    ready: str | None = None
    ready_timeout_s: int = 600
    ports: tuple[int, ...] = ()
    isolation: Isolation | None = None
    force: bool = False  # pass the whole cache by
    egress: EgressGrant = field(default_factory=EgressGrant)
    """What may leave its sandboxes, where whoever creates one says nothing else."""


class BuildStatus(StrEnum):
    """How far a build is, in the protocol's words."""

    WAITING = "waiting"
    BUILDING = "building"
    READY = "ready"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the steps of a stage have set so far, and processes of a sandbox therefore start with."""

    env: Mapping[str, str] = field(default_factory=dict)
    workdir: str | None = None  # None: the user's home
    user: str = "user"


@dataclass(frozen=True, slots=True)
class Lock:
    """What a build was made of, down to digests (``sha256:<hex>``): from it the same files come again.

    ``base`` says which image (``digest``, and ``tree``: of its files); ``packages`` are exact versions, by
    kind (``debian``, ``python``, ``node``) and name; ``files`` are the digests of what COPY brought;
    ``steps`` is the chain of step keys; ``tree`` and ``image`` are of the result.
    """

    base: Mapping[str, str]
    packages: Mapping[str, Mapping[str, str]]
    files: Mapping[str, str]
    steps: Sequence[str]
    tree: str
    image: str


@dataclass(frozen=True, slots=True)
class Built:
    """The outcome of a successful build: a root image, and the warm snapshot if something was started."""

    root_digest: str
    snapshot_id: str | None
    resources: Resources
    surroundings: Surroundings
    start: str
    ready: str
    lock: Lock


@dataclass(frozen=True, slots=True)
class BuildLine:
    """One line of a build's log. ``at`` in microseconds since the epoch; ``step`` as "2/7", or ""."""

    at: int
    level: str  # debug, info, warn, error
    message: str
    step: str = ""
