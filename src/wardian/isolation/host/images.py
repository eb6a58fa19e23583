"""What the images of one driver are: their files, and who may restore them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from wardian.isolation.host.substrate import Substrate
from wardian.isolation.port import ImageRefused, MachineImage, MachineSpec

FEATURES_SHOWN = 8


@dataclass(frozen=True, slots=True)
class ImageKind:
    """``files`` make an image of the driver ``driver``. ``program`` is what its builds are of; ``install``
    what a host needs to restore one. ``same_resources``: only a machine of the same size can become one."""

    driver: str
    files: tuple[str, ...]
    program: str
    install: str
    same_resources: bool = True

    def check(self, image: MachineImage, spec: MachineSpec, substrate: Substrate) -> None:
        """Raise :class:`ImageRefused` unless ``image`` can become a machine of ``spec`` here."""
        if image.driver != self.driver:
            raise ImageRefused(f"the image was made by the driver {image.driver!r}, not {self.driver!r}")
        if image.build != substrate.build:
            raise ImageRefused(
                f"the image was made by the {self.program} build {image.build}, "
                f"this host has {substrate.build}",
                hint=f"install the {self.install} it was made with, or start the sandbox afresh",
            )
        if image.root_digest != spec.root.digest:
            raise ImageRefused(f"the image needs the root {image.root_digest}, not {spec.root.digest}")
        if missing := sorted(image.cpu_features - substrate.cpu_features):
            shown = ", ".join(missing[:FEATURES_SHOWN])
            raise ImageRefused(f"this CPU lacks {shown}, which the image relies on")
        if self.same_resources and image.resources != spec.resources:
            raise ImageRefused(f"the image is of a machine with {image.resources}, not {spec.resources}")
        self._check_files(image)

    def describe(self, directory: Path, spec: MachineSpec, substrate: Substrate) -> MachineImage:
        """The image just written to ``directory`` by a machine of ``spec``."""
        return MachineImage(
            directory=directory,
            files={name: (directory / name).stat().st_size for name in self.files},
            driver=self.driver,
            build=substrate.build,
            cpu_features=substrate.cpu_features,
            root_digest=spec.root.digest,
            resources=spec.resources,
        )

    def _check_files(self, image: MachineImage) -> None:
        if set(image.files) != set(self.files):
            raise ImageRefused(
                f"the image must consist of {', '.join(self.files)}, not {', '.join(sorted(image.files))}"
            )
        for name in self.files:
            try:
                size = (image.directory / name).stat().st_size
            except OSError as error:
                raise ImageRefused(f"{name} of the image cannot be read: {error}") from error
            if size != image.files[name]:
                raise ImageRefused(f"{name} of the image has {size} bytes, not {image.files[name]}")


def check_memory_size(image: MachineImage, name: str) -> None:
    """Raise :class:`ImageRefused` unless the file ``name`` is as large as the machine's memory."""
    if image.files[name] != image.resources.memory_mib << 20:
        raise ImageRefused(f"{name} of the image has the wrong size")


__all__ = ["ImageKind", "check_memory_size"]
