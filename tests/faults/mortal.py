"""``wardian`` that kills itself at one of the boundaries a crash may fall on: ``WARDIAN_DIE_AT=NAME[:N]``, at
the Nth time it gets there."""

from __future__ import annotations

import os
import signal
from collections import Counter
from typing import Any

from wardian.app import server
from wardian.sandboxes.workshop import Workshop

NAME, _, NUMBER = os.environ["WARDIAN_DIE_AT"].partition(":")
seen: Counter[str] = Counter()


def checkpoint(name: str) -> None:
    seen[name] += 1
    if (name, seen[name]) == (NAME, int(NUMBER or 1)):
        os.kill(os.getpid(), signal.SIGKILL)


def mortal(**parts: Any) -> Workshop:
    return Workshop(**parts, checkpoint=checkpoint)


if __name__ == "__main__":
    server.Workshop = mortal  # type: ignore[assignment,attr-defined]
    from wardian.cli.main import app

    app()
