"""Calls to the outside, through the bridge: it has the keys and the ledger, we have neither.

A call belongs to a step. If the machine dies in the middle, the next one asks again under the same name, and
the bridge's ledger answers what was answered before.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import time
import urllib.parse
from collections.abc import Callable
from typing import Any, TypeVar

from wardian_run import run

T = TypeVar("T")

TOKEN_FILE = "/run/wardian/token"
TRIES, PAUSE_S, PAUSE_MAX_S = 6, 0.5, 20.0
SILENCE_S = float(os.environ.get("ANALYST_SILENCE_S", "60"))
"""After so long without a byte a connection is given up: one out of a restored machine is silent for ever."""

AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})


class Refused(Exception):
    """The other side, or the bridge, says no, and would say so again."""


class Broken(Exception):
    """No answer, or half of one. ``after_s`` is when it makes sense to ask again, if the other side said."""

    def __init__(self, why: str, after_s: float | None = None) -> None:
        super().__init__(why)
        self.after_s = after_s


def post(url: str, step: str, body: Any, read: Callable[[http.client.HTTPResponse], T]) -> T:
    """What ``read`` makes of the answer. What breaks off, or cannot be had now, is asked again, not for ever.

    Raises Refused; Broken after the last try.
    """
    for left in reversed(range(TRIES)):
        try:
            return _once(url, step, body, read)
        except (Broken, OSError, http.client.HTTPException) as error:
            if not left:
                raise Broken(f"given up after {TRIES} tries: {error}") from error
            said = error.after_s if isinstance(error, Broken) else None
            run.emit("again", {"step": step, "why": str(error)})  # waits for a server, if there is none
        usual = PAUSE_S * 2 ** (TRIES - 1 - left) * random.uniform(0.5, 1)
        time.sleep(min(usual if said is None else said, PAUSE_MAX_S))
    raise AssertionError


def _once(url: str, step: str, body: Any, read: Callable[[http.client.HTTPResponse], T]) -> T:
    parts = urllib.parse.urlsplit(url)
    with open(TOKEN_FILE) as file:
        token = file.read().strip()  # another one after every restore
    headers = {
        "Authorization": f"Bearer {token}",
        "Content-Type": "application/json",
        "Wardian-Step": step,
        # For an upstream that knows what that is: also a call that nobody saw the end of is done once.
        "Idempotency-Key": f"{run.facts['run']}:{step}",
    }
    connection = http.client.HTTPConnection(parts.netloc, timeout=SILENCE_S)
    try:
        connection.request("POST", parts.path, json.dumps(body), headers)
        answer = connection.getresponse()
        if answer.status >= 400:
            _refuse(answer)
        return read(answer)
    finally:
        connection.close()


def _refuse(answer: http.client.HTTPResponse) -> None:
    said = answer.read(4096).decode(errors="replace")
    why = f"{answer.status} {answer.reason}: {said}"
    stale = answer.status in (401, 403) and '"token_' in said  # the machine is another one since we read it
    if answer.status not in AGAIN and not stale:
        raise Refused(why)
    after = answer.headers.get("Retry-After", "")
    raise Broken(why, float(after) if after.isdecimal() else None)
