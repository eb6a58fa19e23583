"""What the demo must see."""

from __future__ import annotations

import time
from collections.abc import Callable

PATIENCE_S = 90


class DemoFailed(Exception):
    """Something did not do what it promises."""


def expect(truth: bool, otherwise: str) -> None:
    """Fail the demo unless ``truth``."""
    if not truth:
        raise DemoFailed(otherwise)


def wait_until(reached: Callable[[], bool], what: str) -> None:
    """Look until it is so."""
    deadline = time.monotonic() + PATIENCE_S
    while not reached():
        expect(time.monotonic() < deadline, f"waited {PATIENCE_S} s for {what}")
        time.sleep(0.02)
