"""AWS Signature Version 4: signs a request with the real keys, whatever it was signed with inside.

The payload's digest is what the program says (``x-amz-content-sha256``), or that of its body. A payload that
is signed chunk by chunk is signed chunk by chunk again.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from urllib.parse import quote, unquote

from wardian.model.errors import Invalid, Unsupported

ALGORITHM = "AWS4-HMAC-SHA256"
STREAMING = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD"
UNSIGNED = frozenset({"UNSIGNED-PAYLOAD", "STREAMING-UNSIGNED-PAYLOAD-TRAILER"})
CHUNK_MAX = 16 << 20
EMPTY = sha256(b"").hexdigest()
_HEX = re.compile(r"[0-9a-f]{64}")
_SCOPE = re.compile(r"Credential=[^/,\s]+/\d{8}/([a-z0-9-]{1,32})/([a-z0-9-]{1,32})/aws4_request")
_HEAD = re.compile(rb"([0-9a-fA-F]{1,8});chunk-signature=([0-9a-f]{64})\r\n")
_SIGNED_ALWAYS = frozenset({"host", "content-type", "content-md5", "range"})

Headers = Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Keys:
    access_key_id: str
    secret_access_key: str = field(repr=False)
    session_token: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Signed:
    """The headers to send, and what a payload's chunks are signed with."""

    headers: Headers
    chunks: Chunks | None


def scope_in(authorization: str) -> tuple[str, str] | None:
    """Region and service that a request was signed for inside."""
    match = _SCOPE.search(authorization)
    return (match[1], match[2]) if match else None


def sign(
    keys: Keys,
    scope: tuple[str, str],
    method: str,
    target: str,
    headers: Headers,
    body_digest: str | None,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> Signed:
    """Sign. ``headers`` have their ``host`` and no signature; ``body_digest`` counts where they say none."""
    region, service = scope
    stamp = now().strftime("%Y%m%dT%H%M%SZ")
    told = next((value for name, value in headers if name.lower() == "x-amz-content-sha256"), None)
    payload = told or body_digest or EMPTY
    if payload != STREAMING and payload not in UNSIGNED and not _HEX.fullmatch(payload):
        raise Unsupported(
            f"payloads signed as {payload[:64]} are not supported",
            code="sigv4_payload",
            hint="use chunk signatures without a signed trailer, or an unsigned payload",
        )
    replaced = {"x-amz-date", "x-amz-security-token", "authorization", "x-amz-content-sha256"}
    sent = [(name, value) for name, value in headers if name.lower() not in replaced]
    sent += [("x-amz-date", stamp), ("x-amz-content-sha256", payload)]
    if keys.session_token:
        sent.append(("x-amz-security-token", keys.session_token))
    chosen: dict[str, list[str]] = {}
    for name, value in sent:
        if name.lower() in _SIGNED_ALWAYS or name.lower().startswith("x-amz-"):
            chosen.setdefault(name.lower(), []).append(" ".join(value.split()))
    names = ";".join(sorted(chosen))
    path, _, query = target.partition("?")
    canonical = "\n".join(
        (
            method,
            _path(path, service),
            _query(query),
            "".join(f"{name}:{','.join(chosen[name])}\n" for name in sorted(chosen)),
            names,
            payload,
        )
    )
    credential = f"{stamp[:8]}/{region}/{service}/aws4_request"
    key = _signing_key(keys.secret_access_key, stamp[:8], region, service)
    signature = _mac(key, "\n".join((ALGORITHM, stamp, credential, _digest(canonical.encode()))))
    value = (
        f"{ALGORITHM} Credential={keys.access_key_id}/{credential}, SignedHeaders={names}, "
        f"Signature={signature}"
    )
    chunks = Chunks(key, stamp, credential, signature) if payload == STREAMING else None
    return Signed([*sent, ("authorization", value)], chunks)


class Chunks:
    """Signs the chunks of a payload anew. Each goes out when it is complete: its signature comes first."""

    def __init__(self, key: bytes, stamp: str, credential: str, seed: str) -> None:
        self._key, self._stamp, self._credential, self._last = key, stamp, credential, seed
        self._pending = b""

    def feed(self, data: bytes) -> bytes:
        """What of the payload can be sent by now. Raises :class:`Invalid`."""
        self._pending += data
        return b"".join(self._complete())

    def _complete(self) -> Iterator[bytes]:
        while self._pending:
            match = _HEAD.match(self._pending)
            if match is None:
                if len(self._pending) > 128:
                    raise Invalid("the payload is not in signed chunks", code="sigv4_payload")
                return
            size = int(match[1], 16)
            if size > CHUNK_MAX:
                raise Invalid(f"a chunk of more than {CHUNK_MAX} bytes", code="sigv4_payload")
            end = match.end() + size + 2
            if len(self._pending) < end:
                return
            data = self._pending[match.end() : end - 2]
            if self._pending[end - 2 : end] != b"\r\n":
                raise Invalid("the payload is not in signed chunks", code="sigv4_payload")
            self._pending = self._pending[end:]
            yield match[1] + b";chunk-signature=" + self._sign(data).encode() + b"\r\n" + data + b"\r\n"

    def _sign(self, data: bytes) -> str:
        text = "\n".join(
            (f"{ALGORITHM}-PAYLOAD", self._stamp, self._credential, self._last, EMPTY, _digest(data))
        )
        self._last = _mac(self._key, text)
        return self._last


def _path(path: str, service: str) -> str:
    """S3 signs a path as it is sent; the others encode it once more."""
    sent = quote(unquote(path), safe="/~") or "/"
    return sent if service == "s3" else quote(sent, safe="/~")


def _query(query: str) -> str:
    pairs = [part.partition("=") for part in query.split("&") if part]
    return "&".join(
        f"{name}={value}"
        for name, value in sorted(
            (quote(unquote(name), safe="~"), quote(unquote(value), safe="~")) for name, _, value in pairs
        )
    )


def _signing_key(secret: str, *parts: str) -> bytes:
    key = f"AWS4{secret}".encode()
    for part in (*parts, "aws4_request"):
        key = hmac.digest(key, part.encode(), "sha256")
    return key


def _mac(key: bytes, text: str) -> str:
    return hmac.digest(key, text.encode(), "sha256").hex()


def _digest(data: bytes) -> str:
    return sha256(data).hexdigest()
