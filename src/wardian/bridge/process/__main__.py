"""``python -m wardian.bridge.process CHANNEL KEYS``, two descriptors: as the server starts it."""

import sys

from wardian.bridge.process.main import run

run(int(sys.argv[1]), int(sys.argv[2]))
