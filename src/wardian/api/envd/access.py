"""Who may use a sandbox's data plane: the sandbox's own tokens, and signatures made with them. Pure.

Every comparison of a secret takes the same time whatever the guess.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hmac import compare_digest

from wardian.api.envd.connect import RpcError
from wardian.api.envd.routing import header

TOKEN_HEADER = b"x-access-token"
TRAFFIC_HEADER = b"e2b-traffic-access-token"
UNAUTHORIZED = "unauthorized access, please provide a valid access token or method signing if supported"
_SIGNATURE_MAX = 128


class Denied(Exception):
    """Not allowed; ``message`` is what the protocol says to answer."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


def same(guess: str, secret: str) -> bool:
    return compare_digest(guess.encode("utf-8", "surrogateescape"), secret.encode())


def check_token(headers: Mapping[bytes, bytes], token: str | None) -> None:
    """The access token, where the sandbox has one. Raises :class:`Denied` (401)."""
    if token is not None and not same(header(headers, TOKEN_HEADER) or "", token):
        raise Denied(UNAUTHORIZED)


def check_traffic(headers: Mapping[bytes, bytes], token: str | None) -> None:
    """The traffic token, for sandboxes whose ports are not public. Raises :class:`Denied` (403)."""
    if token is None:
        return
    given = header(headers, TRAFFIC_HEADER)
    if given is None:
        raise Denied(
            "Sandbox is secured with traffic access token. Token header 'e2b-traffic-access-token' is missing"
        )
    if not same(given, token):
        raise Denied(
            "Sandbox is secured with traffic access token. "
            "Provided token in header 'e2b-traffic-access-token' is invalid"
        )


@dataclass(frozen=True, slots=True)
class FileRequest:
    """What a signature of a ``/files`` URL covers, as the query has it. ``operation``: read or write."""

    path: str
    operation: str
    username: str | None
    signature: str | None
    expiration: str | None

    def matcher(self) -> Callable[[str], bool]:
        """A function that says whether a token is the one this request was signed with."""
        prefix = f"{self.path}:{self.operation}:{self.username or ''}:"
        suffix = f":{self.expiration}" if self.expiration is not None else ""
        given = (self.signature or "")[:_SIGNATURE_MAX]

        def matches(token: str) -> bool:
            digest = hashlib.sha256(f"{prefix}{token}{suffix}".encode("utf-8", "surrogateescape")).digest()
            return same(given, "v1_" + base64.b64encode(digest).rstrip(b"=").decode())

        return matches


def check_files(
    headers: Mapping[bytes, bytes], request: FileRequest, token: str | None, *, now_s: float
) -> None:
    """The access token, else a valid signature. Raises :class:`Denied` (401)."""
    if token is None:
        return
    given = header(headers, TOKEN_HEADER)
    if given is not None:
        if not same(given, token):
            raise Denied("access token present in header but does not match")
        return
    if request.signature is None:
        raise Denied("missing signature query parameter")
    if not request.matcher()(token):
        raise Denied("invalid signature")
    if request.expiration is not None and expires_at(request.expiration) < int(now_s):
        raise Denied("signature is already expired")


def expires_at(text: str) -> int:
    """Unix seconds of ``signature_expiration``; anything else counts as long ago."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 12 else 0


def basic_user(headers: Mapping[bytes, bytes]) -> str | None:
    """The user an RPC runs as: ``Authorization: Basic base64("user:")``, or None for the default one."""
    value = header(headers, b"authorization")
    if value is None:
        return None
    scheme, _, credentials = value.partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        user = base64.b64decode(credentials.strip(), validate=True).decode()
    except (binascii.Error, ValueError):
        raise RpcError("unauthenticated", "invalid basic authorization header") from None
    name = user.partition(":")[0]
    if "\0" in name:
        raise RpcError("unauthenticated", f"invalid username: {name!r}")
    return name or None
