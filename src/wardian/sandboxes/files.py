"""A sandbox's files alone: captured from a running machine, and laid over a freshly booted one.

What is kept is a canonical layer over the root image. It names no driver, no build and no processor, so it
outlives an upgrade of all of them; and what boots from it is a new boot: other processes, another boot id.
"""

from __future__ import annotations

from pathlib import Path

from wardian.guest.guest import Guest
from wardian.images.layers import capture_layer
from wardian.isolation.port import MachineImage, RootImage
from wardian.model.resources import Resources
from wardian.snapshots.manifest import FILES_DRIVER
from wardian.snapshots.store import disk_error

LAYER = "files.tar"
_MIB = 1 << 20
_OVERHEAD = 256 * _MIB  # headers of many small files, beyond what the disk holds


async def capture_files(guest: Guest, root: RootImage, resources: Resources, directory: Path) -> MachineImage:
    """The guest's files, all of one instant, as the snapshot store takes them. Its processes then go on."""
    size_max = resources.disk_mib * _MIB + _OVERHEAD
    try:
        layer = await capture_layer(guest, root, directory / LAYER, size_max=size_max, hold=True)
    except OSError as error:
        raise disk_error(error) from error
    return MachineImage(
        directory=directory,
        files={LAYER: layer.size_bytes},
        driver=FILES_DRIVER,
        build="",
        cpu_features=frozenset(),
        root_digest=root.digest,
        resources=resources,
    )
