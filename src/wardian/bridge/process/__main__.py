"""``python -m wardian.bridge.process DESCRIPTOR``: as the server starts it."""

import sys

from wardian.bridge.process.main import run

run(int(sys.argv[1]))
