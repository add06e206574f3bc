"""What schemathesis does not know of itself: MessagePack bodies. Loaded by its own process, not by pytest."""

from __future__ import annotations

from typing import Any

import msgpack
import schemathesis

NO_MESSAGEPACK = b"\xc1"
"""The one byte that MessagePack never uses: stands for what it cannot hold, as whole numbers beyond 64 bits."""


@schemathesis.serializer("application/msgpack")
def packed(_context: Any, value: Any) -> bytes:
    """A body as MessagePack."""
    if isinstance(value, bytes):
        return value
    try:
        return bytes(msgpack.packb(value))
    except (OverflowError, TypeError, ValueError):
        return NO_MESSAGEPACK
