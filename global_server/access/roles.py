"""Roles, and whom they make of somebody who asks."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Role(StrEnum):
    """What somebody may do. Of users each role includes the ones before it; a device is no user."""

    VIEWER = "viewer"
    OPERATOR = "operator"
    ADMIN = "admin"
    DEVICE = "device"


_USERS = (Role.VIEWER, Role.OPERATOR, Role.ADMIN)


@dataclass(frozen=True, slots=True)
class Principal:
    """Somebody who asks.

    Attributes
    ----------
    name:
        a user's name, or the device's id
    aggregator:
        a device that may send what it merged of other devices, under their ids
    key_id:
        which key a device showed
    """

    name: str
    role: Role
    aggregator: bool = False
    key_id: str | None = None

    def may(self, role: Role) -> bool:
        """Say whether this includes what a role may.

        >>> Principal("ada", Role.OPERATOR).may(Role.VIEWER), Principal("mote-1", Role.DEVICE).may(Role.VIEWER)
        (True, False)
        """
        if role not in _USERS or self.role not in _USERS:
            return self.role is role
        return _USERS.index(self.role) >= _USERS.index(role)


LOCAL = Principal("local", Role.ADMIN)
"""Everybody, where access is open: only this machine can ask."""
