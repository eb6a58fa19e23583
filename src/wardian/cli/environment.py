"""Takes secrets out of the environment, in which they would be shown for as long as the server lives.

What a process was started with stays in ``/proc/PID/environ`` whatever it does, and goes to whatever it
starts. So the server is started once more, in its own place, with them in a file without a name.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping

SECRETS = (
    "WARDIAN_ENGINE_URL",
    "WARDIAN_VAULT_KEY",
    "WARDIAN_VAULT_KEY_COMMAND",
    "WARDIAN_VAULT_KEY_PREVIOUS",
)
_DESCRIPTOR = "WARDIAN_SECRETS_DESCRIPTOR"


def concealed() -> Mapping[str, str]:
    """The environment, of which this process shows no secret any more.

    Does not return the first time, where there is one: the same command begins anew.
    """
    found = {name: os.environ.pop(name) for name in SECRETS if name in os.environ}
    if found:
        descriptor = os.memfd_create("secrets", 0)
        os.write(descriptor, json.dumps(found).encode())
        os.environ[_DESCRIPTOR] = str(descriptor)
        os.execv(sys.executable, sys.orig_argv)
    handed = os.environ.pop(_DESCRIPTOR, None)
    if handed is None:
        return os.environ
    with open(int(handed), "rb") as file:
        file.seek(0)
        return {**os.environ, **json.load(file)}
