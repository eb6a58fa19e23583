"""The Connect protocol's JSON dialect, without any I/O.

A streamed message is an *envelope*: one byte of flags, four bytes of length (big-endian), then JSON. The last
envelope of an answer has the END flag and carries ``{}`` or ``{"error": {...}}``. Messages follow protobuf's
JSON mapping: lowerCamelCase names (snake_case is understood too), bytes as base64, 64-bit integers as
strings, enums as names, defaults left out, unknown fields ignored.

Everything a client sends is bounded (:data:`MESSAGE_MAX`) and checked for its type; what does not fit raises
:class:`RpcError`, never anything else.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

MESSAGE_MAX = 4 * 1024 * 1024
"""Longest message accepted, in bytes: the guest takes 2 MiB of arguments, and base64 adds a third."""

FLAG_COMPRESSED, FLAG_END = 0x01, 0x02
ENVELOPE_HEADER = 5
UINT32_MAX = 2**32 - 1
TIMEOUT_DIGITS_MAX = 10  # of Connect-Timeout-Ms, by the protocol


class RpcError(Exception):
    """An answer that is an error. ``code`` is one of Connect's slugs (see ``wardian.api.errors``)."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message

    def body(self) -> bytes:
        """The error as a unary answer carries it."""
        return encode({"code": self.code, "message": self.message})


def invalid(message: str) -> RpcError:
    return RpcError("invalid_argument", message)


def encode(message: Mapping[str, Any]) -> bytes:
    """Compact JSON. Lone surrogates (file names that are not UTF-8) become replacement characters."""
    return json.dumps(message, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def envelope(payload: bytes, flags: int = 0) -> bytes:
    """One message of a stream, ready to send."""
    return bytes((flags,)) + len(payload).to_bytes(4, "big") + payload


def end_of_stream(error: RpcError | None = None) -> bytes:
    """The last envelope of a stream."""
    if error is None:
        return envelope(b"{}", FLAG_END)
    return envelope(encode({"error": {"code": error.code, "message": error.message}}), FLAG_END)


class EnvelopeReader:
    """Cuts a byte stream into envelopes, however it is chopped up. Feed it, then iterate."""

    def __init__(self, limit: int = MESSAGE_MAX) -> None:
        self._limit = limit
        self._buffer = bytearray()

    def feed(self, data: bytes) -> None:
        self._buffer += data

    def __iter__(self) -> Iterator[bytes]:
        """Payloads that are complete so far. Raises :class:`RpcError` for compressed or oversized ones."""
        while (payload := self._next()) is not None:
            yield payload

    def _next(self) -> bytes | None:
        buffer = self._buffer
        if len(buffer) < ENVELOPE_HEADER:
            return None
        flags, length = buffer[0], int.from_bytes(buffer[1:ENVELOPE_HEADER], "big")
        if flags & FLAG_COMPRESSED:
            raise invalid("protocol error: a compressed message without a compression agreed on")
        if flags:
            raise invalid(f"protocol error: invalid envelope flags {flags:#04x}")
        if length > self._limit:
            raise RpcError(
                "resource_exhausted", f"message size {length} is larger than configured max {self._limit}"
            )
        if len(buffer) < ENVELOPE_HEADER + length:
            return None
        payload = bytes(buffer[ENVELOPE_HEADER : ENVELOPE_HEADER + length])
        del buffer[: ENVELOPE_HEADER + length]
        return payload

    def finish(self) -> None:
        """The stream is over: anything left is a message cut short."""
        if self._buffer:
            raise invalid("protocol error: incomplete envelope")


def timeout_seconds(header: str | None) -> float | None:
    """``Connect-Timeout-Ms`` in seconds; absent or 0 is no limit."""
    if header is None or header == "":
        return None
    if len(header) > TIMEOUT_DIGITS_MAX or not (header.isascii() and header.isdigit()):
        raise invalid(f"protocol error: invalid timeout {header[:32]!r}")
    return int(header) / 1000 or None


@dataclass(frozen=True, slots=True)
class Fields:
    """A message received, read field by field; names are given in snake_case. ``null`` counts as absent."""

    raw: Mapping[str, Any]

    @classmethod
    def parse(cls, payload: bytes) -> Fields:
        """Decode one JSON message; an empty payload is a message of defaults."""
        if not payload:
            return cls({})
        try:
            value = json.loads(payload)
        except (ValueError, RecursionError) as error:
            raise invalid(f"cannot decode the message: {error}") from None
        if not isinstance(value, dict):
            raise invalid("cannot decode the message: not a JSON object")
        return cls(value)

    def __contains__(self, name: str) -> bool:
        return self._get(name) is not None

    def _get(self, name: str) -> Any:
        value = self.raw.get(_camel(name))
        return self.raw.get(name) if value is None else value

    def text(self, name: str, default: str = "") -> str:
        value = self._get(name)
        if value is None:
            return default
        return _text(value, name)

    def optional_text(self, name: str) -> str | None:
        return self.text(name) if name in self else None

    def flag(self, name: str, default: bool = False) -> bool:
        value = self._get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise invalid(f"{name}: expected a boolean")
        return value

    def number(self, name: str, default: int = 0, *, maximum: int = UINT32_MAX) -> int:
        """An unsigned integer, as a JSON number or (as protobuf does for 64 bits) a string of digits."""
        value = self._get(name)
        if value is None:
            return default
        if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= 20:
            value = int(value)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= maximum:
            raise invalid(f"{name}: expected an integer between 0 and {maximum}")
        return value

    def blob(self, name: str) -> bytes:
        """Base64, standard or url-safe, padded or not."""
        value = self.text(name)
        plain = value.rstrip("=").replace("-", "+").replace("_", "/")
        try:
            return base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)
        except (binascii.Error, ValueError):
            raise invalid(f"{name}: invalid base64") from None

    def texts(self, name: str) -> tuple[str, ...]:
        value = self._get(name)
        if value is None:
            return ()
        if not isinstance(value, list):
            raise invalid(f"{name}: expected a list")
        return tuple(_text(item, name) for item in value)

    def text_map(self, name: str) -> dict[str, str]:
        value = self._get(name)
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise invalid(f"{name}: expected a map")
        return {_text(key, name): _text(item, name) for key, item in value.items()}

    def choice(self, name: str, names: Mapping[str, int]) -> int:
        """An enum, by name or by number; 0 when absent or unknown."""
        value = self._get(name)
        if isinstance(value, str):
            return names.get(value, 0)
        if isinstance(value, int) and not isinstance(value, bool):
            return value if value in names.values() else 0
        if value is None:
            return 0
        raise invalid(f"{name}: expected the name of an enum value")

    def nested(self, name: str) -> Fields:
        """A message inside; one of defaults when absent."""
        value = self._get(name)
        if value is None:
            return Fields({})
        if not isinstance(value, dict):
            raise invalid(f"{name}: expected an object")
        return Fields(value)


def _camel(name: str) -> str:
    head, *rest = name.split("_")
    return head + "".join(part.capitalize() for part in rest)


def _text(value: Any, name: str) -> str:
    """A string the guest can be given: no NUL, no lone surrogates."""
    if not isinstance(value, str):
        raise invalid(f"{name}: expected a string")
    if "\0" in value:
        raise invalid(f"{name}: contains a NUL byte")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise invalid(f"{name}: is not valid Unicode") from None
    return value
