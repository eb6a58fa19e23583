"""Bases: what the first step of a build stands on, as root images in the catalog."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event

from wardian.images import erofs
from wardian.images.base import Report, base_recipe, debian_recipe, extra_tar, packages_in
from wardian.images.catalog import BuiltImage, Catalog, Manifest
from wardian.images.oci.config import host_architecture
from wardian.images.oci.fetch import Fetcher
from wardian.images.oci.layout import read_layout
from wardian.images.oci.merge import Merged
from wardian.images.oci.outlet import NOWHERE, Outlet
from wardian.images.oci.provision import Programs, certificates, provision
from wardian.images.oci.reference import Reference, check_place, parse
from wardian.model.errors import Unavailable

REPOSITORY = Path(__file__).parents[3]
PROVISIONING = 3
"""To be raised with every change of how foreign images are made, or they are not made again."""

STATUS_MAX = 64 << 20  # of dpkg's list of packages


class Bases:
    """Makes bases, or finds them in the catalog. Every method blocks, for seconds or minutes: use a thread.

    References come from users. So images on this host's disk are only taken from below ``directory`` (None:
    not at all), and from registries that the ``outlet`` leads to. ``programs`` is the directory whose
    ``guest/build`` holds the native programs.
    """

    def __init__(
        self,
        catalog: Catalog,
        outlet: Outlet = NOWHERE,
        *,
        programs: Path = REPOSITORY,
        directory: Path | None = None,
    ) -> None:
        self._catalog = catalog
        self._outlet = outlet
        self._sudo = programs / "guest/build/wardian-sudo"
        self._directory = directory

    def debian(
        self, suite: str, packages: Iterable[str], report: Report = lambda words, fraction: None
    ) -> BuiltImage:
        """A Debian of that suite with all that ``base`` has, and these packages (``name``, ``name=version``).

        With every package of an earlier image's manifest pinned, its very files come again. Raises
        :class:`Invalid` for what can be no package, :class:`NotFound` for a package or a version that the
        archive does not have.
        """
        return self._catalog.build(debian_recipe("debian", suite, packages), report)

    def image(
        self,
        reference: str,
        *,
        username: str = "",
        password: str = "",
        report: Report = lambda words, fraction: None,
        stop: Event | None = None,
    ) -> BuiltImage:
        """An OCI image, with what sandboxes need laid over it; its ``config`` says how it wants to be run.

        ``reference`` is ``docker://...`` or a plain name (``python:3.11``), ``oci:/dir[:tag]``,
        ``oci-archive:/file[:tag]`` or ``docker-archive:/file[:tag]``. What a name means is asked each time;
        an image is fetched once. Fetching ends early when it is to ``stop``. Raises :class:`Invalid` for no
        image, one for another processor or a bomb, :class:`Forbidden` for one that may not be had,
        :class:`FetchFailed`.
        """
        wanted = parse(reference)
        if wanted.transport == "docker":
            self._outlet.check(*wanted.place)
        else:
            check_place(wanted, self._directory)
        with self._catalog.room() as room:
            fetcher = Fetcher(wanted, room, self._outlet, username=username, password=password, stop=stop)
            report("asking for the image", 0.02)
            digest = fetcher.digest()
            key = _key({"image": digest, "arch": host_architecture(), "provisioning": PROVISIONING})
            if found := self._catalog.find_key(key):
                return found
            programs = self._programs(report)
            report("fetching the image", 0.10)
            layout = fetcher.fetch()

            origin = Origin(wanted, digest, key)
            return self._catalog.make(key, lambda out: _make(origin, layout, programs, out, report), report)

    def _programs(self, report: Report) -> Programs:
        """The static bash of our own base, and the sudo that is built with the agent."""
        if not self._sudo.exists():
            raise Unavailable(f"{self._sudo} is missing", code="program_missing", hint="run `make setup`")
        base = self._catalog.build(base_recipe(), report)
        with erofs.Image(base.root.path) as image:
            bash = next(image.read(node) for node in image.walk() if node.path == "/usr/bin/bash-static")
        return Programs(bash, self._sudo.read_bytes())


@dataclass(frozen=True, slots=True)
class Origin:
    """Where an image came from: what was asked for, the digest that had then, and our key for it."""

    reference: Reference
    digest: str
    key: str


def _make(origin: Origin, layout: Path, programs: Programs, out: Path, report: Report) -> Manifest:
    """Write the image in ``layout`` to ``out``, provisioned."""
    report("checking and unpacking its layers", 0.50)
    scratch = out.parent.parent
    (layers := scratch / "layers").mkdir()
    contents = read_layout(layout, layers)
    report("laying them over each other", 0.65)
    image = Merged(contents.layers)
    bundle = certificates(image)
    status = image.read("var/lib/dpkg/status", STATUS_MAX) or b""
    (provisions := scratch / "provisions.tar").write_bytes(extra_tar(provision(image, programs)))
    image.lay_over([provisions])
    report("writing the image", 0.80)
    image.write(out)
    return Manifest(
        name=str(origin.reference),
        suite="",
        recipe=f"sha256:{origin.key}",
        digest="",
        tree="",
        size_bytes=0,
        packages=packages_in(status.decode(errors="replace")),
        source=origin.reference.at(origin.digest),
        config=replace(contents.config, certificates=bundle).as_json(),
    )


def _key(what: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()
