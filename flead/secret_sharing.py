"""A secret of 32 bytes in shares, of which enough tell it and fewer tell nothing: numbers modulo the prime 2^256 + 297.

Source: Shamir, 1979, "How to share a secret".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

Randomness = Callable[[int], bytes]
"""Gives so many unpredictable bytes: `os.urandom`."""

PRIME = 2**256 + 297
"""The least prime above 2^256, so that 32 bytes are a number below it."""
SECRET_BYTES = 32
SHARE_BYTES = 33


def split(secret: bytes, shares: int, threshold: int, randomness: Randomness) -> list[bytes]:
    """Share a secret of 32 bytes out, so that `threshold` of the shares tell it and fewer tell nothing.

    Returns
    -------
    the shares taken at places 1, 2, ... in this order

    >>> import os
    >>> shares = split(b"0123456789abcdef" * 2, 5, 3, os.urandom)
    >>> combine(factors_at_zero([1, 3, 4]), [shares[0], shares[2], shares[3]])
    b'0123456789abcdef0123456789abcdef'
    """
    # 48 bytes modulo the prime are uniform but for 2^-127.
    coefficients = [int.from_bytes(randomness(48), "big") % PRIME for _ in range(threshold - 1)]
    coefficients.append(int.from_bytes(secret, "big"))
    out = []
    for place in range(1, shares + 1):
        value = 0
        for coefficient in coefficients:
            value = (value * place + coefficient) % PRIME
        out.append(value.to_bytes(SHARE_BYTES, "big"))
    return out


def factors_at_zero(places: Sequence[int]) -> list[int]:
    """Lagrange's factors, by which shares at these places make the value at 0.

    >>> factors_at_zero([1, 2]) == [2, PRIME - 1]
    True
    """
    factors = []
    for place in places:
        above, below = 1, 1
        for other in places:
            if other != place:
                above = above * other % PRIME
                below = below * (other - place) % PRIME
        factors.append(above * pow(below, -1, PRIME) % PRIME)
    return factors


def combine(factors: Sequence[int], shares: Sequence[bytes]) -> bytes | None:
    """The secret that shares make; None where it is no secret of 32 bytes."""
    pairs = zip(factors, shares, strict=True)
    value = sum(factor * int.from_bytes(share, "big") for factor, share in pairs) % PRIME
    return value.to_bytes(SECRET_BYTES, "big") if value < 2**256 else None
