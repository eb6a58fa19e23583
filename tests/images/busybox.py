"""The layers of a small image, made of the busybox of this host."""

from __future__ import annotations

import subprocess
import tarfile
from pathlib import Path

from tests.images.oci_images import Content, layer

BUSYBOX = Path("/bin/busybox")  # Debian's busybox-static
ALPINE_PROFILE = b"export PATH=/usr/sbin:/usr/bin:/sbin:/bin\nfor s in /etc/profile.d/*.sh; do . $s; done\n"


def busybox_layers() -> list[bytes]:
    """As Alpine is made: one program with many names, no bash, uid 1000 already somebody's."""
    applets = subprocess.run([BUSYBOX, "--list"], capture_output=True, text=True, check=True).stdout.split()
    files: dict[str, Content | tarfile.TarInfo] = {
        "bin/busybox": BUSYBOX.read_bytes(),
        **{f"bin/{name}": "busybox" for name in applets if name != "busybox"},
        "etc/passwd": b"root:x:0:0:root:/root:/bin/ash\nnode:x:1000:1000::/home/node:/bin/ash\n",
        "etc/group": b"root:x:0:root\nnode:x:1000:\n",
        "etc/shadow": b"root:*::0:::::\n",
        "etc/profile": ALPINE_PROFILE,
        "etc/profile.d/colour.sh": b"export COLOUR=green\n",
        "etc/resolv.conf": "../run/resolv.conf",
        "opt/gone": b"removed by the next layer",
    }
    return [layer(files), layer({"opt/.wh.gone": b"", "opt/tool/bin/greet": b"#!/bin/sh\necho hello $1\n"})]
