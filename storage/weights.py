"""The weights of a network as MongoDB keeps them, written without making a Python number of each.

A document of an architecture always has the same bytes but for the numbers in it: one is encoded by the driver, and of
every further one only the numbers are written into a copy. The document is the one of `network.to_message`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import bson
import numpy as np
from bson.raw_bson import RawBSONDocument
from numpy.typing import NDArray

from flead import network
from flead.network import Architecture, Vector


def encoded(theta: Vector, architecture: Architecture) -> RawBSONDocument:
    """The document of a parameter vector, (parameter_count,), which must be finite.

    >>> document = encoded(np.array([1.0, 2.0, 0.5]), Architecture(2, (), 1))
    >>> bson.decode(document.raw) == network.to_message(np.array([1.0, 2.0, 0.5]), Architecture(2, (), 1))
    True
    """
    template = _template(architecture)
    raw = template.raw.copy()
    raw[template.places] = theta[template.order].astype("<f8").view(np.uint8)
    return RawBSONDocument(raw.tobytes())


@dataclass(frozen=True, slots=True)
class _Template:
    """The bytes of a document, and where its numbers are.

    Attributes
    ----------
    places:
        (8 parameter_count,), of the numbers' bytes, in the order in which the document has them
    order:
        (parameter_count,), which parameter each number is
    """

    raw: NDArray[np.uint8]
    places: NDArray[np.intp]
    order: NDArray[np.intp]


@lru_cache(maxsize=256)
def _template(architecture: Architecture) -> _Template:
    """Find the numbers: the bytes that differ where all bits of all numbers do."""

    def written(theta: Vector) -> NDArray[np.uint8]:
        return np.frombuffer(bson.encode(network.to_message(theta, architecture)), dtype=np.uint8)

    count = architecture.parameter_count
    zeros = written(np.zeros(count))
    ones = written(np.full(count, 0xFFFF_FFFF_FFFF_FFFF, dtype=np.uint64).view(np.float64))
    places = np.flatnonzero(zeros != ones)
    order = written(np.arange(count, dtype=np.float64))[places].view("<f8").astype(np.intp)
    return _Template(zeros, places, order)
