"""The bridge's process, with a fault in it: it kills itself at one checkpoint, once.

``bridge_peer.py POINT CHANNEL KEYS``: its directory remembers that it did.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from wardian.bridge.process.main import run

MARK = Path("crashed")


def crash_at(point: str, name: str) -> None:
    if name == point and not MARK.exists():
        MARK.touch()
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    point, descriptor, keys = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    run(descriptor, keys, lambda name: crash_at(point, name))
