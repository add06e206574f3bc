"""Users' passwords: argon2id, with the library's own parameters (RFC 9106's second choice: 64 MiB)."""

from __future__ import annotations

import threading

import argon2
from argon2.exceptions import InvalidHashError, VerificationError

from flead.errors import FleadError

SHORTEST, LONGEST = 10, 1_024
"""Characters of a password."""

_HASHER = argon2.PasswordHasher()
_AT_ONCE = threading.Semaphore(2)
"""Each check takes 64 MiB: many at once would take the machine's memory."""
_OF_NOBODY = _HASHER.hash("nobody has this password")


def hashed(password: str) -> str:
    """Make what is kept of a password.

    Raises
    ------
    FleadError
        where it is too short or too long

    >>> hashed("correct horse").startswith("$argon2id$")
    True
    """
    if not SHORTEST <= len(password) <= LONGEST:
        raise FleadError(f"a password has {SHORTEST} to {LONGEST} characters")
    return _HASHER.hash(password)


def holds(password: str, kept: str | None) -> bool:
    """Say whether a password is the one. It takes as long where there is no such user (None, or an empty text)."""
    with _AT_ONCE:
        try:
            return _HASHER.verify(kept or _OF_NOBODY, password[:LONGEST]) and bool(kept)
        except (VerificationError, InvalidHashError):
            return False
