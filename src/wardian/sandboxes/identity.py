"""What makes a sandbox itself: ids, tokens, and what its guest is told it is."""

from __future__ import annotations

import json
import secrets
import string
from collections.abc import Mapping
from dataclasses import replace
from hashlib import sha256
from uuid import uuid4

from wardian.guest.guest import Identity
from wardian.model.sandbox import Sandbox

_ALPHABET = string.ascii_lowercase + string.digits
ENVIRONMENT_MAX = 32 * 1024  # bytes of JSON: an identity is told in one frame
_ID_LENGTH = 19  # 98 bits: ids are unguessable, though never a credential


def new_id(prefix: str) -> str:
    """A fresh id: one letter that says what it names, then [a-z0-9]. No dash: clients cut ids at dashes."""
    number = secrets.randbits(128)
    letters = []
    for _ in range(_ID_LENGTH):
        number, digit = divmod(number, len(_ALPHABET))
        letters.append(_ALPHABET[digit])
    return prefix + "".join(letters)


def new_token() -> str:
    """A bearer token: 256 bits, safe in URLs and headers."""
    return secrets.token_urlsafe(32)


def identity_of(
    sandbox: Sandbox,
    *,
    fresh_boot: bool,
    env: Mapping[str, str] = {},
    files: Mapping[str, tuple[int, bytes]] = {},
) -> Identity:
    """What the guest is told at hand-out; ``env`` and ``files`` are the bridge's part of it.

    ``fresh_boot`` gives it a new boot id: right for a new sandbox or a fork, wrong for a resume, whose
    processes must not notice that they slept.
    """
    boot_id = str(uuid4()) if fresh_boot else None
    told = _identity(sandbox.id, sandbox.template_id, boot_id=boot_id, env={**env, **sandbox.spec.env})
    return replace(told, files={**told.files, **files})


def identity_of_nobody(template: str) -> Identity:
    """What a guest is told while it waits: every file of an identity is then there and only changes later."""
    return _identity("nobody", template, boot_id=str(uuid4()), env={})


def _identity(name: str, template_id: str, *, boot_id: str | None, env: Mapping[str, str]) -> Identity:
    return Identity(
        hostname=name,
        machine_id=sha256(f"wardian machine {name}".encode()).hexdigest()[:32],
        boot_id=boot_id,
        files={
            "/run/e2b/.E2B_SANDBOX": (0o644, b"true"),
            "/run/e2b/.E2B_SANDBOX_ID": (0o644, name.encode()),
            "/run/e2b/.E2B_TEMPLATE_ID": (0o644, template_id.encode()),
            "/run/e2b/.WARDIAN_ENV": (0o600, _environment(env)),
        },
    )


def _environment(env: Mapping[str, str]) -> bytes:
    """What every process starts with, for programs of the warm snapshot, which were started before it was
    known. JSON; ``null`` when there is too much of it to be told."""
    told = json.dumps(dict(env)).encode()
    return told if len(told) <= ENVIRONMENT_MAX else b"null"
