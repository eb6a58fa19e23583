"""Builds the templates that come with Wardian, on a server of its own whose data stays in ``build/builtin``.

Tests and benchmarks use them there. The first time takes minutes (packages, bytecode, warm snapshots); after
that, what has not changed comes from the cache of build steps.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / "build/builtin"
WARDIAN = Path(sys.executable).with_name("wardian")
NAMES = ("code-interpreter-v1", "desktop")


def main() -> int:
    """Build what the command line names, or all. The exit status is that of the first build that failed."""
    DATA.mkdir(parents=True, exist_ok=True)
    command = [str(WARDIAN), "serve", "--json", "--port", "0", "--data", str(DATA)]
    with (DATA / "server.log").open("a") as log:
        server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
    try:
        assert server.stdout is not None
        greeting = server.stdout.readline()
        if not greeting:
            sys.stderr.write(f"the server did not start; see {DATA}/server.log\n")
            return 1
        facts = json.loads(greeting)
        env = os.environ | {"WARDIAN_API_URL": facts["url"], "WARDIAN_API_KEY": facts["key"]}
        for name in sys.argv[1:] or NAMES:
            sys.stderr.write(f"{name}\n")
            built = subprocess.run([WARDIAN, "template", "build", "--house", "--builtin", name], env=env)
            if built.returncode:
                return built.returncode
        return 0
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait()


if __name__ == "__main__":
    sys.exit(main())
