"""Attestations: what was searched in a snapshot, for what, with which outcome; signed with the server's key.

A document is canonical JSON (sorted keys, no spaces) beside an Ed25519 signature of its bytes. It names
values by id and by a fingerprint that only this server can make.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from hashlib import sha256
from hmac import digest as hmac
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from wardian.model.errors import Conflict, Invalid, Unavailable
from wardian.snapshots.needles import FORMS
from wardian.snapshots.scan import VERSION, Report

KIND = "wardian.scan/1"
SEED_BYTES = 32


class AttestationBad(Conflict):
    """It was changed, or another key signed it."""

    code = "attestation_bad"


class SigningKey:
    """The server's key for attestations, kept in a file that only its owner can read."""

    def __init__(self, seed: bytes) -> None:
        self._key = Ed25519PrivateKey.from_private_bytes(seed)
        self.fingerprints = hmac(seed, b"wardian fingerprints", sha256)

    @classmethod
    def kept_in(cls, path: Path) -> SigningKey:
        """The key in ``path``, made at the first use. Raises :class:`Unavailable` when others can read it."""
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            if path.stat().st_mode & 0o077:
                raise Unavailable(
                    f"{path} can be read by others", code="key_exposed", hint=f"chmod 600 {path}"
                ) from None
        else:
            with os.fdopen(descriptor, "wb") as file:
                file.write(os.urandom(SEED_BYTES))
                file.flush()
                os.fsync(file.fileno())
        seed = path.read_bytes()
        if len(seed) != SEED_BYTES:
            raise Unavailable(f"{path} holds no key", code="key_damaged", hint="remove it to make another")
        return cls(seed)

    @property
    def public(self) -> str:
        """The public key, in base64."""
        return base64.b64encode(self._key.public_key().public_bytes_raw()).decode()

    @property
    def id(self) -> str:
        return sha256(self._key.public_key().public_bytes_raw()).hexdigest()[:16]

    def attest(self, snapshot_id: str, digest: str, report: Report, *, at_us: int) -> dict[str, Any]:
        """The signed attestation of a scan. ``digest`` is the snapshot's, of its manifest."""
        document = {
            "kind": KIND,
            "snapshot": snapshot_id,
            "digest": digest,
            "at_us": at_us,
            "scanner": {"version": VERSION, "forms": list(FORMS)},
            "searched": [
                {"id": name, "fingerprint": fingerprint} for name, fingerprint in report.searched.items()
            ],
            "unsearchable": report.unsearchable,
            "sources": report.sources,
            "streams": {
                "inflated": report.streams,
                "bytes": report.stream_bytes,
                "cut": report.streams_cut,
            },
            "result": "clean" if report.clean else "found",
            "hits": [asdict(hit) for hit in report.hits],
        }
        signature = base64.b64encode(self._key.sign(_canonical(document))).decode()
        return {"document": document, "key": self.public, "key_id": self.id, "signature": signature}


def verify(attestation: Mapping[str, Any], public: str) -> Mapping[str, Any]:
    """The document of an attestation that ``public`` (base64) signed.

    Raises :class:`AttestationBad`, or Invalid for what is no key.
    """
    try:
        key = Ed25519PublicKey.from_public_bytes(base64.b64decode(public, validate=True))
    except ValueError:
        raise Invalid("that is no Ed25519 public key in base64", code="bad_public_key") from None
    try:
        document: Mapping[str, Any] = attestation["document"]
        key.verify(base64.b64decode(attestation["signature"], validate=True), _canonical(document))
        if document["kind"] != KIND:
            raise AttestationBad(f"it is of the kind {document['kind']!r}, not {KIND!r}")
    except (InvalidSignature, KeyError, TypeError, ValueError):
        raise AttestationBad(
            "the attestation was changed, or not signed with this key",
            hint="compare the key with the server's: `wardian snapshot attestation ID` shows it",
        ) from None
    return document


def _canonical(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
