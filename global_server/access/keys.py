"""Devices' keys, and the signatures of those that sign.

A key is 256 random bits, so its SHA-256 is all that need be kept: nobody can try them all.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import secrets
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from flead.errors import BadInput, Reason

PREFIX = "flead_dk_"


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key as it is shown once."""

    key_id: str
    key: str

    @property
    def sha256(self) -> str:
        """What is kept of it."""
        return fingerprint(self.key)


def new_key() -> NewKey:
    """Make a key: `flead_dk_`, its name, which is no secret, and 256 random bits.

    >>> made = new_key()
    >>> made.key.startswith(f"flead_dk_{made.key_id}_"), len(made.sha256)
    (True, 64)
    """
    key_id = secrets.token_hex(6)
    return NewKey(key_id, f"{PREFIX}{key_id}_{secrets.token_urlsafe(32)}")


def fingerprint(key: str) -> str:
    """What is kept of a key: its SHA-256 in hexadecimal digits."""
    return hashlib.sha256(key.encode()).hexdigest()


def check_public_key(text: str) -> str:
    """Return a public key as it was given, if it is one: base64 of Ed25519's 32 bytes.

    Raises
    ------
    BadInput
        where it is none

    >>> check_public_key("c2hvcnQ=")
    Traceback (most recent call last):
    flead.errors.BadInput: wrong_type: public_key: must be base64 of the 32 bytes of an Ed25519 public key
    """
    try:
        raw = base64.b64decode(text, validate=True)
        Ed25519PublicKey.from_public_bytes(raw)
    except (binascii.Error, ValueError):
        raise BadInput(
            Reason.WRONG_TYPE, "public_key: must be base64 of the 32 bytes of an Ed25519 public key"
        ) from None
    return text


def signed_by(public_key: str, raw: bytes, signature: str) -> bool:
    """Say whether a signature (base64) of some bytes was made with the key that belongs to a public key."""
    try:
        key = Ed25519PublicKey.from_public_bytes(base64.b64decode(public_key, validate=True))
        key.verify(base64.b64decode(signature, validate=True), raw)
    except (InvalidSignature, binascii.Error, ValueError):
        return False
    return True
