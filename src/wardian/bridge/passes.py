"""Run tokens: what a program in a sandbox shows the bridge. Made by the server, checked by the bridge.

A JWT signed with Ed25519. It says for which sandbox, run and epoch it is; by itself it opens nothing, because
the bridge also knows over whose link a request came.
"""

from __future__ import annotations

import base64
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import OKPKey
from joserfc.jws import JWSRegistry

AUDIENCE = "wardian-bridge"
ALGORITHM = "Ed25519"
TOKEN_MAX = 4096
READ_MAX = 1024

_SKEW_S = 5


@dataclass(frozen=True, slots=True)
class Holder:
    """Whom a token is for. A sandbox is its own run, until there are runs."""

    tenant: str
    agent: str
    run: str
    sandbox: str
    epoch: int


class Mint:
    """Makes tokens. ``public`` is what the bridge checks them with."""

    def __init__(self, secret: bytes, lifetime_s: int, now_s: Callable[[], float] = time.time) -> None:
        shown = Ed25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw()
        self.public = _base64(shown)
        self._key = _key(self.public, _base64(secret))
        self._lifetime_s, self._now_s = lifetime_s, now_s

    def make(self, holder: Holder) -> str:
        now = int(self._now_s())
        claims = {
            "aud": AUDIENCE,
            "sub": holder.sandbox,
            "tenant": holder.tenant,
            "agent": holder.agent,
            "run": holder.run,
            "epoch": holder.epoch,
            "iat": now,
            "exp": now + self._lifetime_s,
        }
        return jwt.encode({"alg": ALGORITHM}, claims, self._key, registry=_REGISTRY)


class Inspector:
    """Checks tokens, against the link that a request came over."""

    def __init__(self, public: str, now_s: Callable[[], float] = time.time) -> None:
        self._key, self._now_s = _key(public), now_s
        self._read: OrderedDict[str, dict[str, Any]] = OrderedDict()  # tokens whose signature is good

    def check(self, token: str, holder: Holder) -> str:
        """``ok``, or a slug that says why not."""
        if not token:
            return "token_missing"
        if len(token) > TOKEN_MAX:
            return "token_malformed"
        claims = self._read.get(token)
        if claims is None:
            try:
                claims = jwt.decode(token, self._key, registry=_REGISTRY).claims
            except (JoseError, ValueError, TypeError, KeyError):
                return "token_forged"
            self._read[token] = claims
            if len(self._read) > READ_MAX:
                self._read.popitem(last=False)
        return self._judge(claims, holder)

    def _judge(self, claims: dict[str, Any], holder: Holder) -> str:
        expires, now = claims.get("exp"), self._now_s()
        if claims.get("aud") != AUDIENCE:
            return "token_for_another_audience"
        if not isinstance(expires, int) or expires + _SKEW_S < now:
            return "token_expired"
        if (claims.get("sub"), claims.get("tenant")) != (holder.sandbox, holder.tenant):
            return "token_of_another_sandbox"
        if claims.get("epoch") != holder.epoch:
            return "token_of_another_epoch"
        if (claims.get("run"), claims.get("agent")) != (holder.run, holder.agent):
            return "token_of_another_run"
        return "ok"


_REGISTRY = JWSRegistry(algorithms=[ALGORITHM])


def _key(public: str, secret: str | None = None) -> OKPKey:
    parts: dict[str, str | list[str]] = {"kty": "OKP", "crv": "Ed25519", "x": public}
    return OKPKey.import_key(parts if secret is None else {**parts, "d": secret})


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
