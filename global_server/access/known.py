"""Users and keys in memory, as MongoDB held them a moment ago: it would be slow to ask it for each request."""

from __future__ import annotations

import logging
import threading
import time

from flead.errors import Unavailable
from storage.access import BEGINNING, AccessRepository, StoredKey, StoredUser

LOG = logging.getLogger(__name__)

REFRESH_S = 2.0
"""How long a change that somebody else made (`flead keys revoke`) may take to be known here, s."""


class Known:
    """Who may ask. Safe to use from many threads.

    While MongoDB is away, what was known stays known: nobody can change it meanwhile.
    """

    def __init__(self, repository: AccessRepository) -> None:
        self._repository = repository
        self._lock = threading.Lock()
        self._asked = float("-inf")
        self._loaded = False
        self._users: dict[str, StoredUser] = {}
        self._keys: dict[str, StoredKey] = {}
        self._signing: dict[str, dict[str, str]] = {}
        self._users_since = self._keys_since = BEGINNING

    def is_old(self) -> bool:
        """Say whether MongoDB should be asked again."""
        return time.monotonic() - self._asked >= REFRESH_S

    def refresh(self, *, at_once: bool = False) -> None:
        """Ask MongoDB what has changed, unless another thread does.

        Raises
        ------
        Unavailable
            where it does not answer, and never did
        """
        if not self._lock.acquire(blocking=at_once or not self._loaded):
            return
        try:
            if self.is_old() or at_once:
                self._read()
        finally:
            self._asked = time.monotonic()
            self._lock.release()

    def _read(self) -> None:
        try:
            users, keys = self._repository.users(self._users_since), self._repository.keys(self._keys_since)
        except Unavailable as error:
            if not self._loaded:
                raise
            LOG.warning("users and keys are those of a moment ago: %s", error)
            return
        for user in users:
            self._users[user.name] = user
            self._users_since = user.changed_at
        for key in keys:
            self._take(key)
            self._keys_since = key.changed_at
        self._loaded = True

    def _take(self, key: StoredKey) -> None:
        signing = self._signing.setdefault(key.device_id, {})
        if key.revoked_at is None:
            self._keys[key.sha256] = key
            if key.public_key:
                signing[key.key_id] = key.public_key
        else:
            self._keys.pop(key.sha256, None)
            signing.pop(key.key_id, None)
        if not signing:
            del self._signing[key.device_id]

    def user(self, name: str) -> StoredUser | None:
        """Give a user who was not removed."""
        found = self._users.get(name)
        return None if found is None or found.removed else found

    def key(self, sha256: str) -> StoredKey | None:
        """Give the key of which this is the fingerprint, unless it was revoked."""
        return self._keys.get(sha256)

    def public_keys(self, device_id: str) -> tuple[str, ...]:
        """Give the keys with which a device's updates may be signed; none: they need not be."""
        return tuple(self._signing.get(device_id, {}).values())
